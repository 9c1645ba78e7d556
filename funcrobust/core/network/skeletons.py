"""Skeletons: a module's structure without its tensors."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from funcrobust.core.network.names import tied


def skeleton(module: nn.Module) -> nn.Module:
    """Copy the structure alone: every tensor on the meta device, ties kept by deepcopy's memo.

    A tensor missing from a later call therefore fails loudly instead of being silently stale.
    """
    memo: dict[int, object] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = b.detach().to("meta")
    for part in module.modules():  # what a forward pass has left: deepcopy takes no graph along
        for held in vars(part).values():
            if isinstance(held, Tensor) and not held.is_leaf:
                memo[id(held)] = held.detach().clone()
    return copy.deepcopy(module, memo)


def called(
    network: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
) -> Any:
    """Call a skeleton with tensors in their places; one thread at a time, as all share the places.

    While it is compiled nobody waits: what is left is a graph, without places.
    """
    if torch.compiler.is_compiling():
        return functional_call(network, (params, buffers), (x,))
    with _lock_of(network):
        return functional_call(network, (params, buffers), (x,))


_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()


def _lock_of(network: nn.Module) -> threading.RLock:
    """Return the skeleton's lock, which lies beside it: a lock can be neither copied nor sent."""
    found = _LOCKS.get(network)
    if found is None:
        with _MAKING:
            found = _LOCKS.setdefault(network, threading.RLock())
    return found


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors in place of meta ones; one that is tied may be given by any of its names."""
    for first, names in tied(module.named_parameters).items():
        old = module.get_parameter(first)
        new = nn.Parameter(_given(tensors, names, old), old.requires_grad)
        for owner, leaf in _places(module, names):
            setattr(owner, leaf, new)
    for first, names in tied(module.named_buffers).items():
        given = _given(tensors, names, module.get_buffer(first))
        for owner, leaf in _places(module, names):
            owner._buffers[leaf] = given


def _given(tensors: dict[str, Tensor], names: Iterable[str], default: Tensor) -> Tensor:
    return next((tensors[name] for name in names if name in tensors), default)


def _places(module: nn.Module, names: Iterable[str]) -> Iterator[tuple[nn.Module, str]]:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        yield module.get_submodule(owner), leaf
