"""Skeletons: a module's structure without its tensors, and with pure stand-ins for some layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError


def skeleton(module: nn.Module) -> nn.Module:
    """Copy the structure alone: every tensor on the meta device, ties kept by deepcopy's memo.

    A tensor missing from a later call therefore fails loudly instead of being silently stale.
    """
    memo: dict[int, object] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = b.detach().to("meta")
    return copy.deepcopy(module, memo)


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
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


class ExplicitDropout(nn.Module):
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


def with_explicit_dropout(module: nn.Module) -> nn.Module:
    """Replace dropout modules. ``F.dropout`` inside a forward is out of reach, and stays random."""
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return ExplicitDropout(module.p, channels=not isinstance(module, nn.Dropout))
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout) and module.p > 0.0:
        raise FuncrobustError(f"{type(module).__name__} is not supported: set its p to 0")
    for name, child in module.named_children():
        setattr(module, name, with_explicit_dropout(child))
    return module


@contextmanager
def dropout_from(skeleton: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    dropouts = [m for m in skeleton.modules() if isinstance(m, ExplicitDropout) and m.p > 0.0]
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


class AffineBatchNorm(nn.Module):
    """Evaluation-mode batch norm as what it is then: one scale and one shift a channel.

    Equal to ``F.batch_norm(training=False)``, whose own second derivative takes many passes over
    the images: with this, a CURE gradient takes four fifths of the time (preact-tiny, CPU).
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps: float = norm.eps  # type: ignore[assignment]
        self._parameters, self._buffers = norm._parameters, norm._buffers

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.running_mean, Tensor)
        assert isinstance(self.running_var, Tensor)
        return self._affine(x, self.running_mean, self.running_var)

    def _affine(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = torch.rsqrt(var + self.eps)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        scale = scale if weight is None else weight * scale
        shift: Tensor = -mean * scale
        shift = shift if bias is None else torch.add(shift, bias)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.to(x.dtype).reshape(shape), x, scale.to(x.dtype).reshape(shape))


class OwnBatchNorm(AffineBatchNorm):
    """Batch norm by the batch's own statistics that keeps no running ones, so that it is pure.

    Its derivatives, of every order, are those of means and products: ``F.batch_norm`` would write
    to its buffers, which torch.compile does not follow into nested derivatives.
    """

    def forward(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        exact = x.float() if x.dtype.itemsize < 4 else x  # sums over a batch, as torch has them
        var, mean = torch.var_mean(exact, dims, correction=0)
        return self._affine(x, mean, var)


def replace_batch_norms(module: nn.Module, by: type[AffineBatchNorm]) -> nn.Module:
    """Replace the batch norms; their tensors keep their names.

    One that has no running statistics normalises by its batch in every mode.
    """
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return (OwnBatchNorm if module.running_mean is None else by)(module)
    for name, child in module.named_children():
        setattr(module, name, replace_batch_norms(child, by))
    return module
