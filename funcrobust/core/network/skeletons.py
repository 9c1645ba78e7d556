"""Skeletons: a module's structure without its tensors."""

from __future__ import annotations

import copy

from torch import Tensor, nn


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
