"""An ``nn.Module`` becomes pure functions of explicit parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.attention import differentiable_attention, uses_fused_attention
from funcrobust.core.network.batch_norm import (
    AffineBatchNorm,
    OwnBatchNorm,
    RunningBatchNorm,
    SharedBatchNorm,
    replace_batch_norms,
)
from funcrobust.core.network.draws import CountedDraws
from funcrobust.core.network.names import Names
from funcrobust.core.network.skeletons import called, fill, skeleton
from funcrobust.core.randomness import key_from
from funcrobust.core.shards import Shard

Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
Predict = Callable[[Params, Tensor], Tensor]
"""``(params, x) -> logits``: x (B, ...), images in [0, 1] say; logits (B, classes)."""


@dataclass(frozen=True)
class Functional:
    """A network as data: two pure functions and the pytrees they start from.

    ``params`` and ``buffers`` are the module's tensors at the time of `functionalize`, detached
    and copied; no function here ever changes a tensor that was handed to it. All nest under
    ``grad`` to any order, ``jvp`` and ``vmap``, also over stacked parameters and buffers
    (``torch.func.stack_module_state``), and compile. They raise `FuncrobustError` for a tensor that
    is missing, for one whose name has a dot and is not the network's (parameters of your own, for a
    loss to use, have no dot), and for images that are bytes.
    """

    params: Params
    buffers: Buffers
    _skeleton: nn.Module = field(repr=False)
    _eval_skeleton: nn.Module = field(repr=False)
    _batch_skeleton: nn.Module = field(repr=False)
    _train_skeleton: nn.Module = field(repr=False)
    _param_names: Names = field(repr=False)
    _buffer_names: Names = field(repr=False)
    _fused_attention: bool = field(repr=False)
    _shard: Shard = field(default=Shard(), repr=False)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Logits (B, classes) in evaluation mode, with the buffers of `functionalize`."""
        return self.with_buffers(self.buffers)(params, x)

    def with_buffers(self, buffers: Buffers, *, key: Tensor | None = None) -> Predict:
        """Bind evaluation mode to given buffers (batch-norm statistics): a `Predict`.

        A network that draws in evaluation mode too (noise on its input) draws from torch's global
        generator, unless there is a ``key``: then what it draws is a function of the key, as in
        `predict_train`, and the same at every call. `funcrobust.expectation` is the mean of many.
        """
        self._buffer_names.check(buffers)

        def predict(params: Params, x: Tensor) -> Tensor:
            if key is None:
                return self._call(self._eval_skeleton, params, buffers, x)
            with CountedDraws(key, self._shard):
                return self._call(self._eval_skeleton, params, buffers, x)

        return predict

    def predict_train(
        self,
        params: Params,
        buffers: Buffers,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Buffers]:
        """Logits in training mode, and the buffers that come after this batch.

        Batch norm normalises by the batch's own statistics; the running statistics it would have
        written in place come back as new tensors. A network that draws masks (dropout, drop-path)
        or noise needs a ``key``, as `funcrobust.key` makes them: its masks are a
        function of the key alone, also under ``grad``, ``vmap`` (over stacked keys: each member its
        own masks) and ``torch.compile``. A ``generator`` will do where nothing is transformed: a
        key is drawn from it. Raises `FuncrobustError` where masks are to be drawn without either.
        """
        if generator is not None:
            if key is not None:
                raise FuncrobustError("masks come from a key or from a generator: give one of them")
            if isinstance(generator, Tensor):
                raise FuncrobustError("a key is given by its name: predict_train(..., key=key)")
            key = key_from(generator)
        self._buffer_names.check(buffers)
        fresh = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        with CountedDraws(key, self._shard):
            try:
                logits = self._call(self._train_skeleton, params, fresh, x)
            except RuntimeError as error:
                if "running_mean or running_var" not in str(error):
                    raise
                raise FuncrobustError(
                    "vmap over parameters or inputs moves each member's batch-norm statistics: "
                    "stack the buffers too, and map over them (torch.func.stack_module_state)"
                ) from error
        return logits, {name: buffer.detach() for name, buffer in fresh.items()}

    def by_batch(self, buffers: Buffers, *, key: Tensor | None = None) -> Predict:
        """Bind training mode to given buffers, which do not move: a `Predict`.

        Batch norm normalises by the batch's own statistics, and derivatives go through them.
        Masks are drawn from ``key``, and are those of `predict_train` with the same one: the same
        at every call.
        """
        self._buffer_names.check(buffers)

        def predict(params: Params, x: Tensor) -> Tensor:
            # Copies: some norms, of kinds not known here, write to their buffers all the same.
            fresh = {name: buffer.detach().clone() for name, buffer in buffers.items()}
            with CountedDraws(key, self._shard):
                return self._call(self._batch_skeleton, params, fresh, x)

        return predict

    def _call(self, network: nn.Module, params: Params, buffers: Buffers, x: Tensor) -> Tensor:
        self._param_names.check(params)
        if x.dtype == torch.uint8:
            raise FuncrobustError("a network takes floats in [0, 1], got bytes: divide by 255")
        before = _version(x)
        try:
            if not self._fused_attention:
                logits = called(network, params, buffers, x)
            else:
                with differentiable_attention(x, *params.values()):
                    logits = called(network, params, buffers, x)
        except RuntimeError as error:
            raise _of_types(error, params, x) from error
        if not isinstance(logits, Tensor):
            raise FuncrobustError(
                f"the network returns a {type(logits).__name__}: wrap it in a module that returns "
                "the logits alone"
            )
        if _version(x) != before:
            raise FuncrobustError(
                "the network has changed the images that it was given, in place (a first "
                "nn.ReLU(inplace=True), x.sub_(mean)): let it begin with a copy, x.clone()"
            )
        return logits

    def frozen(self) -> list[str]:
        """Return the parameters that the module held fixed, none where it did so with all."""
        named = dict(self._skeleton.named_parameters())
        held = [name for name, p in named.items() if not p.requires_grad]
        return held if len(held) < len(named) else []

    def batch_statistics(self, before: Buffers, after: Buffers) -> Buffers:
        """Return ``after`` with the batch's own statistics for the running ones, constant.

        ``after`` is what `predict_train` made of ``before``: running ← (1 − m)·running + m·batch
        in every batch norm, solved here for batch (the variance is the unbiased one). Of one that
        is called k times it is their mean, the last calls weighing most: 1 − (1 − m)^k is new.
        """
        found = dict(after)
        for path, module in self._train_skeleton.named_modules():
            if not isinstance(module, (_NormBase, RunningBatchNorm)):
                continue
            if module.running_mean is None:
                continue
            if module.momentum == 0.0:  # frozen: what it had is what it has
                continue
            for name in ("running_mean", "running_var"):
                key = f"{path}.{name}" if path else name
                counter = key.removesuffix(name) + "num_batches_tracked"
                # Of instance norm the counter stays where it is.
                calls = (after[counter] - before[counter]).clamp_min(1).double()
                m: float | None = module.momentum
                new = calls / after[counter] if m is None else 1 - (1 - m) ** calls
                found[key] = before[key] + (after[key] - before[key]) / new.to(before[key])
        return {name: b.detach() for name, b in found.items()}

    def to(
        self,
        device: torch.device | str | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Functional:
        """Return a copy whose tensors are on ``device`` and whose images are laid out so.

        ``torch.channels_last`` is faster for convolutions on CPUs and on tensor cores. For another
        precision convert the module first: ``functionalize(module.double())``.
        """
        if isinstance(device, torch.dtype):
            raise FuncrobustError(
                f"to() takes a device: for {device} convert the module before, "
                "fr.functionalize(module.to(dtype))"
            )

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: t.to(device, memory_format=memory_format) if _has_layouts(t) else t.to(device)
                for name, t in tensors.items()
            }

        return replace(self, params=move(self.params), buffers=move(self.buffers))

    def across(self, shard: Shard) -> Functional:
        """Return the same network for batches whose rows lie on several processes.

        Where it normalises by the batch's statistics, they are of the whole batch, in values, in
        derivatives of every order, and in the running statistics that it leaves. Masks of dropout
        are of the whole batch too: each process draws them all and keeps its rows.

        Raises `FuncrobustError` for kinds of batch norm that are not torch's own, which would see
        their own rows alone.
        """
        if shard.size == 1:
            return self
        for path, module in self._train_skeleton.named_modules():
            known = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            if isinstance(module, _BatchNorm) and not known:
                raise FuncrobustError(
                    f"{path or 'the network'} is a {type(module).__name__}, whose statistics "
                    "cannot be shared by several processes: use nn.BatchNorm"
                )
        own, running = (partial(norm, shard=shard) for norm in (SharedBatchNorm, RunningBatchNorm))
        evaluation = skeleton(self._skeleton).eval()
        batch, train = (skeleton(self._skeleton).train() for _ in range(2))
        return replace(
            self,
            _eval_skeleton=replace_batch_norms(evaluation, AffineBatchNorm, own),
            _batch_skeleton=replace_batch_norms(batch, own, own),
            _train_skeleton=replace_batch_norms(train, running, own),
            _shard=shard,
        )

    def module(self, params: Params | None = None, buffers: Buffers | None = None) -> nn.Module:
        """Return a fresh ``nn.Module`` in evaluation mode holding copies of these tensors."""
        params, buffers = params or self.params, buffers or self.buffers
        self._param_names.check(params)
        self._buffer_names.check(buffers)
        tensors = {**params, **buffers}
        module = copy.deepcopy(self._skeleton)
        fill(module, {name: tensor.detach().clone() for name, tensor in tensors.items()})
        return module.eval()


def functionalize(module: nn.Module) -> Functional:
    """Turn a module into pure functions of its parameters and buffers.

    The module is not kept and not changed. Tied parameters stay tied. Tensors that the module
    holds as plain attributes (neither parameter nor buffer) are copied as constants. Fused
    attention, which has no second derivative, is switched to torch's plain kernel where a
    derivative is taken, if its module's code shows it (``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, timm, Hugging Face); else run what differentiates twice inside
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    >>> model = functionalize(nn.Linear(4, 3))
    >>> model.predict(model.params, torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    if not isinstance(module, nn.Module):
        raise FuncrobustError(f"functionalize takes an nn.Module, got {type(module).__name__}")
    _require_plain(module)
    params, buffers = Names.of(module)
    return Functional(
        params={name: p.detach().clone() for name, p in module.named_parameters()},
        buffers={name: b.detach().clone() for name, b in module.named_buffers()},
        _skeleton=skeleton(module),
        _eval_skeleton=replace_batch_norms(skeleton(module).eval(), AffineBatchNorm),
        _batch_skeleton=replace_batch_norms(skeleton(module).train(), OwnBatchNorm),
        _train_skeleton=skeleton(module).train(),
        _param_names=params,
        _buffer_names=buffers,
        _fused_attention=uses_fused_attention(module),
    )


def _require_plain(module: nn.Module) -> None:
    """Raise for what cannot be called without its tensors, where that is seen beforehand."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise FuncrobustError(
            f"{type(module).__name__} keeps its network inside: give module.module"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise FuncrobustError("a scripted module has tensors of its own: give it before torch.jit")
    if any(nn.parameter.is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        raise FuncrobustError(
            "the module has lazy parameters, which have no shape yet: call it once with an input"
        )


def _version(x: Tensor) -> int:
    """Count the writes to x so far; 0 where nobody counts."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def autocast(predict: Predict, dtype: torch.dtype | None) -> Predict:
    """Run ``predict`` under autocast in ``dtype``, with logits in x's precision; None: no change.

    Parameters, inputs, losses and every gradient stay float32: only the network's matrix products
    and convolutions run in ``dtype`` (bfloat16 needs no loss scaling).

    Raises `FuncrobustError` for float16, which does need it.
    """
    if dtype is None:
        return predict
    if dtype == torch.float16:
        raise FuncrobustError("float16 needs loss scaling, which is not here: use torch.bfloat16")

    def half(params: Params, x: Tensor) -> Tensor:
        if x.is_meta:  # a dry run: there is nothing to be precise about
            return predict(params, x)
        with torch.autocast(x.device.type, dtype):
            return predict(params, x).to(x.dtype)

    return half


def _has_layouts(t: Tensor) -> bool:
    """Whether a layout of images makes a difference to (O, I, H, W).

    Kernels of one pixel or one channel lie as they lay, whatever is written in their strides; what
    is computed of them has others, for which a compiler would compile all again.
    """
    return t.ndim == 4 and t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1


def _of_types(error: RuntimeError, params: Params, x: Tensor) -> RuntimeError | FuncrobustError:
    """Return the error, or what it means: images and parameters differ in precision."""
    given, own = x.dtype, next(iter(params.values()), x).dtype
    said = ("expected scalar type", "same dtype", "should be the same")
    if given == own or not any(words in str(error) for words in said):
        return error
    return FuncrobustError(
        f"images are {given} and the parameters {own}: x.to({own}), or convert the network"
    )
