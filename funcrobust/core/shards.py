"""One batch on several processes: which rows are whose, and sums over all of them.

    model = functionalize(module).across(shard)
    update = make_update(training_objective(model, compose), optim, across=shard)
    state, metrics = update(state, shard.rows(batch))

is, on each of N processes that hold the same state, the update of one process on the whole batch:
every process draws the same batch (randomness is counted), keeps its rows, and what is a mean over
the batch (the loss, its gradient, batch norm's statistics) is a mean over the processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from funcrobust.core.errors import FuncrobustError


@dataclass(frozen=True)
class Shard:
    """The part of a batch that one process has: every N-th row, from its rank on.

    So of the first n examples, too, each has its share. One process alone is ``Shard()``, for
    which nothing changes.
    """

    rank: int = 0
    size: int = 1
    group: str = ""
    """The process group's name, ``torch.distributed.group.WORLD.group_name``."""

    def rows(self, batch: Any) -> Any:
        """Take one's rows of a batch, any pytree; keys, 0-dim tensors, numbers are for all.

        Raises `FuncrobustError` where the processes cannot have equal parts of a tensor.
        """
        return batch if self.size == 1 else tree_map(self._of, batch)

    def _of(self, part: Any) -> Any:
        if not is_rows(part):
            return part
        if len(part) % self.size:
            raise FuncrobustError(
                f"{len(part)} examples cannot be shared equally by {self.size} processes: choose "
                "a batch, and parts of it, that they divide"
            )
        own = part[self.rank :: self.size]
        if part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last):
            return own.contiguous(memory_format=torch.channels_last)
        return own.contiguous()

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over the processes of a tensor that each has.

        Differentiable to any order: what comes back to one process is the sum of what all send, so
        a gradient of a sum over one's own rows is that of the sum over all rows. Every process must
        call it as often, in the same order. Nests under ``grad`` and ``vmap``. Under
        ``torch.compile`` a gradient within a gradient loses this one's (Dynamo, torch 2.15), which
        `compile_checked` refuses.
        """
        if self.size == 1:
            return x
        total: Tensor = _Sum.apply(x, self.group)
        return total / self.size

    def all_of(self, x: Tensor) -> Tensor:
        """Stack what each process has of a tensor, in the order of their ranks: (N, …) on all.

        One message, differentiable as `mean` is. For small tensors: each sends N times as much.
        """
        if self.size == 1:
            return x.unsqueeze(0)
        slots = torch.zeros(self.size, *[1] * x.ndim, dtype=x.dtype, device=x.device)
        slots[self.rank] = 1
        stacked: Tensor = _Sum.apply(slots * x, self.group)
        return stacked

    def mean_of_all(self, tensors: Any) -> Any:
        """Return the means of a pytree of floating-point tensors, a message for each dtype."""
        if self.size == 1:
            return tensors
        leaves, spec = tree_flatten(tensors)
        found = list(leaves)
        for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):
            which = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            flat = self.mean(torch.cat([leaves[i].reshape(-1) for i in which]))
            parts = flat.split([leaves[i].numel() for i in which])
            for i, part in zip(which, parts, strict=True):
                found[i] = torch.empty_like(leaves[i]).copy_(part.reshape(leaves[i].shape))
        return tree_unflatten(found, spec)


def is_rows(part: Any) -> bool:
    """Tell whether a part of a batch has a row an example."""
    return isinstance(part, Tensor) and part.ndim > 0 and not is_key(part)


def is_key(part: Any) -> bool:
    """Tell whether a part of a batch is a key: torch's are uint64."""
    return isinstance(part, Tensor) and part.dtype == torch.uint64


@torch.library.custom_op("funcrobust::sum_over", mutates_args=())
def _sum_over(x: Tensor, group: str) -> Tensor:
    """Σ over the processes, as a pure function."""
    from torch.distributed import _functional_collectives as collectives

    summed: Tensor = collectives.all_reduce(x.contiguous(), "sum", cast(Any, group))
    return summed.clone()


@_sum_over.register_fake
def _(x: Tensor, group: str) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_sum_over.register_vmap
def _(_info: Any, in_dims: tuple[int | None, ...], x: Tensor, group: str) -> tuple[Tensor, Any]:
    return _sum_over(x, group), in_dims[0]


class _Sum(torch.autograd.Function):
    """y = Σ_r x_r on every process; with cotangents ȳ_r, x̄ = Σ_r ȳ_r: the same sum.

    A custom operator's own autograd does not nest under torch.func (2.15).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        summed: Tensor = _sum_over(x, group)
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:  # noqa: ARG004
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        summed: Tensor = _Sum.apply(cotangent, ctx.group)
        return summed, None
