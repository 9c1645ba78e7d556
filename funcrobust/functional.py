"""An ``nn.Module`` becomes pure functions of explicit parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from funcrobust.errors import FuncrobustError

Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
Predict = Callable[[Params, Tensor], Tensor]
"""``(params, x) -> logits``: x (B, C, H, W) in [0, 1], logits (B, classes)."""


@dataclass(frozen=True)
class Functional:
    """A network as data: two pure functions and the pytrees they start from.

    ``params`` and ``buffers`` are the module's tensors at the time of `functionalize`, detached
    and copied; no function here ever changes a tensor that was handed to it.
    """

    params: Params
    buffers: Buffers
    _eval_skeleton: nn.Module = field(repr=False)
    _train_skeleton: nn.Module = field(repr=False)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Logits (B, classes) in evaluation mode, with the buffers of `functionalize`."""
        return self.with_buffers(self.buffers)(params, x)

    def with_buffers(self, buffers: Buffers) -> Predict:
        """Bind evaluation mode to given buffers (batch-norm statistics): a `Predict`."""

        def predict(params: Params, x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._eval_skeleton, (params, buffers), (x,))
            return logits

        return predict

    def predict_train(
        self, params: Params, buffers: Buffers, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits in training mode, and the buffers that come after this batch.

        Batch norm normalises by the batch's own statistics; the running statistics it would have
        written in place come back as new tensors. A network with dropout needs ``generator``,
        from which every mask is drawn: without one, `FuncrobustError`.
        """
        fresh = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        with _dropout_from(self._train_skeleton, generator):
            logits = functional_call(self._train_skeleton, (params, fresh), (x,))
        return logits, {name: buffer.detach() for name, buffer in fresh.items()}

    def to(
        self,
        device: torch.device | str | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Functional:
        """Return a copy whose tensors are on ``device`` and whose images are laid out so.

        ``torch.channels_last`` is faster for convolutions on CPUs and on tensor cores.
        """

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: t.to(device, memory_format=memory_format) if t.ndim == 4 else t.to(device)
                for name, t in tensors.items()
            }

        return Functional(
            move(self.params), move(self.buffers), self._eval_skeleton, self._train_skeleton
        )

    def module(self, params: Params | None = None, buffers: Buffers | None = None) -> nn.Module:
        """Return a fresh ``nn.Module`` in evaluation mode holding copies of these tensors."""
        tensors = {**(params or self.params), **(buffers or self.buffers)}
        module = copy.deepcopy(self._eval_skeleton)
        _fill(module, {name: tensor.detach().clone() for name, tensor in tensors.items()})
        return module.eval()


def functionalize(module: nn.Module) -> Functional:
    """Turn a module into pure functions of its parameters and buffers.

    The module is not kept and not changed. Tied parameters stay tied. Tensors that the module
    holds as plain attributes (neither parameter nor buffer) are copied as constants.

    >>> model = functionalize(nn.Linear(4, 3))
    >>> model.predict(model.params, torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    if not isinstance(module, nn.Module):
        raise FuncrobustError(f"functionalize takes an nn.Module, got {type(module).__name__}")
    return Functional(
        params={name: p.detach().clone() for name, p in module.named_parameters()},
        buffers={name: b.detach().clone() for name, b in module.named_buffers()},
        _eval_skeleton=_skeleton(module).eval(),
        _train_skeleton=_with_explicit_dropout(_skeleton(module)).train(),
    )


def autocast(predict: Predict, dtype: torch.dtype | None) -> Predict:
    """Run ``predict`` under autocast in ``dtype``, with logits in x's precision; None: no change.

    Parameters, inputs, losses and every gradient stay float32: only the network's matrix products
    and convolutions run in ``dtype`` (bfloat16 needs no loss scaling).
    """
    if dtype is None:
        return predict
    if dtype == torch.float16:
        raise FuncrobustError("float16 needs loss scaling, which is not here: use torch.bfloat16")

    def half(params: Params, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return predict(params, x).to(x.dtype)

    return half


def _skeleton(module: nn.Module) -> nn.Module:
    """Copy the structure alone: every tensor on the meta device, ties kept by deepcopy's memo.

    A tensor missing from a later call therefore fails loudly instead of being silently stale.
    """
    memo: dict[int, object] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = b.detach().to("meta")
    return copy.deepcopy(module, memo)


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors in place of meta ones, once for each tied name."""
    tied: dict[int, nn.Parameter] = {}
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        new = tied.setdefault(id(old), nn.Parameter(tensors.get(name, old), old.requires_grad))
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new)
    shared: dict[int, Tensor] = {}
    for name, buffer in list(module.named_buffers(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = shared.setdefault(
            id(buffer), tensors.get(name, buffer)
        )


class _ExplicitDropout(nn.Module):
    """Dropout whose mask comes from a generator handed in, never from global state."""

    def __init__(self, p: float, channels: bool) -> None:
        super().__init__()
        self.p = p
        self.channels = channels
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0:
            return x
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if self.channels else x.shape
        u = torch.rand(shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return x * (u >= self.p) / (1.0 - self.p) if self.p < 1.0 else torch.zeros_like(x)


def _with_explicit_dropout(module: nn.Module) -> nn.Module:
    """Replace dropout modules. ``F.dropout`` inside a forward is out of reach, and stays random."""
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return _ExplicitDropout(module.p, channels=not isinstance(module, nn.Dropout))
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout) and module.p > 0.0:
        raise FuncrobustError(f"{type(module).__name__} is not supported: set its p to 0")
    for name, child in module.named_children():
        setattr(module, name, _with_explicit_dropout(child))
    return module


@contextmanager
def _dropout_from(skeleton: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    dropouts = [m for m in skeleton.modules() if isinstance(m, _ExplicitDropout) and m.p > 0.0]
    if dropouts and generator is None:
        raise FuncrobustError(
            "this network has dropout, whose masks need a counted source of randomness: set its p "
            "to 0 (the training commands draw no masks), or pass predict_train(..., generator=...)"
        )
    for dropout in dropouts:
        dropout.generator = generator
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.generator = None
