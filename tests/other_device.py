"""A device that every machine has: its tensors are computed on the CPU, and may not mix with its.

What runs here runs on a GPU, as far as places go: a constant left on the host, an index or a
generator of the wrong place, numpy on what has not come back are the errors that they are there.
What would wait for a GPU is counted. Kernels, precision and memory are the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_any, tree_leaves, tree_map

DEVICE = torch.device("lazy")
"""A name that torch knows and this build has no kernels for."""

CROSSES = ("aten._to_copy.default", "aten.copy_.default")
HOST_INDICES = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")
READS = (
    "aten._local_scalar_dense.default", "aten.equal.default", "aten.nonzero.default",
    "aten.masked_select.default", "aten._unique2.default",
)  # fmt: skip
"""What waits for a GPU: the host needs a number, or a shape, that it has."""


class Far(Tensor):
    """A tensor that says it is on `DEVICE`."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """As torch's own, which takes no subclass; one wait for the device."""
        _count("tolist")
        return self.near.tolist()

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if how else repr(self)

    def __repr__(self) -> str:
        return f"Far({self.near!r})"


PLAIN = torch.Generator


class _Kind(type):
    def __instancecheck__(cls, made: Any) -> bool:
        return isinstance(made, PLAIN)


class _Generator(metaclass=_Kind):
    """Stands for torch's own class: it makes one of `DEVICE` where that is asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return FarGenerator() if torch.device(device) == DEVICE else PLAIN(device)


class FarGenerator(PLAIN):
    """A generator of `DEVICE`."""

    device = DEVICE  # type: ignore[assignment]


class _Drawing(TorchFunctionMode):
    """A generator draws on its own device alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # No mode below sees what these make.
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1])]
        if func is Tensor.new_tensor and isinstance(args[0], Far):
            return args[0].near.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if (draw := kwargs.get("generator")) is not None:
            drawn = args[0].device if isinstance(args[0], Tensor) else torch.device("cpu")
            asked = torch.device(kwargs.get("device") or drawn)
            if draw.device != asked:
                raise RuntimeError(f"{func}: a generator of {draw.device} for {asked}")
        return func(*args, **kwargs)


class _Creating(TorchDispatchMode):
    """Factories have no tensor among their arguments that could take them over."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_here: list[_Creating] = []


def _count(name: str) -> None:
    if _here:
        _here[-1].waits.append(name)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, tensors = str(func), [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    far = [t for t in tensors if isinstance(t, Far)]
    near = [t for t in tensors if not isinstance(t, Far) and t.ndim]
    may_mix = name in CROSSES or (name in HOST_INDICES and isinstance(args[0], Far))
    if far and near and not may_mix:
        raise RuntimeError(f"{name}: tensors of the host and of {DEVICE}")
    asked = kwargs.get("device")
    on_device = bool(far) if asked is None else torch.device(asked) == DEVICE
    if (
        (far and name in READS)
        or (name in CROSSES and bool(far) != on_device)
        or _by_mask(name, args)
    ):
        _count(name)
    there = {k: v if k != "device" else torch.device("cpu") for k, v in kwargs.items()}
    out = func(*_unwrapped(args), **_unwrapped(there))
    if name == "aten.copy_.default":
        return args[0]
    if not on_device:
        return out
    out = tree_map(lambda t: Far(t) if isinstance(t, Tensor) else t, out)
    if asked is None and tree_any(lambda t: isinstance(t, Tensor), out):
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


def _by_mask(name: str, args: Any) -> bool:
    """Whether the host must know how many a mask names."""
    return name == "aten.index.Tensor" and any(
        isinstance(index, Far) and index.dtype == torch.bool for index in args[1]
    )


def _unwrapped(tree: Any) -> Any:
    return tree_map(lambda t: t.near if isinstance(t, Far) else t, tree)


def moved(tree: Any) -> Any:
    """Move every tensor of a tree to `DEVICE`."""
    return tree_map(lambda t: t.to(DEVICE) if isinstance(t, Tensor) else t, tree)


def brought_back(tree: Any) -> Any:
    """Move every tensor of a tree to the CPU."""
    return tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, tree)


@contextmanager
def other_device() -> Iterator[list[str]]:
    """Have `DEVICE`; yields the growing list of what waited for it."""
    with _Creating() as creating, _Drawing(), mock.patch("torch.Generator", _Generator):
        _here.append(creating)
        try:
            yield creating.waits
        finally:
            _here.pop()
