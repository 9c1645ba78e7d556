"""Parameters that no one device holds: each process keeps its rows of every tensor (DTensor).

    mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (size,))
    model = sharded(functionalize(module).across(shard), mesh)
    update = make_update(objective, optim, across=shard)
    state = initial_state(model, optim, averaged=True)

What is kept between updates (parameters, momenta, their average) is spread over the processes, as
in ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3); an update gathers the parameters,
differentiates as one process would, and scatters the mean gradient. During an update each process
holds all parameters and their gradient once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from funcrobust.core.network.functional import Functional, Params


def sharded(model: Functional, mesh: Any) -> Functional:
    """Return the network with its parameters spread over a one-dimensional device mesh.

    Along their first dimension. Buffers stay whole: they are small, and the same everywhere.
    """
    from torch.distributed.tensor import Shard, distribute_tensor

    parts: Params = {}
    for name, p in model.params.items():
        parts[name] = distribute_tensor(p, mesh, [Shard(0)])
    return replace(model, params=parts)


def whole(tree: Any) -> Any:
    """Gather the spread tensors of a pytree; all processes must call it."""
    return tree_map(lambda t: t.full_tensor() if is_spread(t) else t, tree)


def scattered(gradients: Params, params: Params) -> Params:
    """Return the mean over the processes of whole gradients, spread as the parameters are."""
    from torch.distributed.tensor import DTensor, Partial

    found: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        like: Any = params[name]
        own = DTensor.from_local(gradient, like.device_mesh, [Partial("avg")])
        found[name] = own.redistribute(like.device_mesh, like.placements)
    return found


def spread_like(full: Tensor, like: Any) -> Tensor:
    """Return a whole tensor, the same in all processes, spread as another is, if it is."""
    if not is_spread(like):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    own: Tensor = DTensor.from_local(full, like.device_mesh, [Replicate()]).redistribute(
        like.device_mesh, like.placements
    )
    return own


def is_spread(tensor: Any) -> bool:
    """Tell whether a tensor is spread over processes."""
    return hasattr(tensor, "full_tensor")


def are_spread(params: Mapping[str, Tensor]) -> bool:
    """Tell whether parameters are."""
    return any(is_spread(p) for p in params.values())
