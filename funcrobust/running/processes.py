"""The processes that ``torchrun`` started: who this one is, and what they tell one another.

    torchrun --nproc-per-node 2 cli.py evaluate ...

The first process alone writes and talks. Without torchrun there is one process, and all of this
does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.shards import Shard
from funcrobust.running.options import Options, command_name


@dataclass(frozen=True)
class Processes:
    """What one of the processes of a run knows, and what it can ask the others."""

    shard: Shard = field(default_factory=Shard)

    @property
    def rank(self) -> int:
        """0 for the one that writes and talks."""
        return self.shard.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.shard.size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.shard.rank == 0

    def same(self, value: Any) -> Any:
        """Return the first one's ``value`` on all (a small one: it is pickled)."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Tell whether it is so on any of them; ``device`` is one that they can talk over."""
        if self.size == 1:
            return flag
        import torch.distributed as dist

        told = torch.tensor(int(flag), device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def together(self, own: Tensor, total: int) -> Tensor:
        """Put back together what each computed of its rows (`own`): (total, …) on all.

        The parts may differ in length by one.
        """
        if self.size == 1:
            return own
        whole = own.new_zeros(total, *own.shape[1:])
        whole[self.rank :: self.size] = own
        return self.joined(whole)

    def joined(self, filled: Tensor) -> Tensor:
        """Put together a tensor of which each has filled some places, the others being 0."""
        if self.size == 1:
            return filled
        import torch.distributed as dist

        # Neither gloo nor NCCL knows bool.
        plain = filled.to(torch.uint8) if filled.dtype == torch.bool else filled
        whole = plain.contiguous().clone()
        dist.all_reduce(whole)
        return whole.to(filled.dtype)

    def own(self, rows: Tensor) -> Tensor:
        """Take one's part of some rows: every N-th."""
        return rows[self.rank :: self.size]


_ALONE = Processes()
_here = _ALONE


def processes() -> Processes:
    """Return this process's place among those of the run."""
    return _here


@contextmanager
def started(options: Options) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did; gloo on CPUs, NCCL on GPUs.

    Raises `FuncrobustError` for a command that several cannot share.
    """
    global _here
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield _ALONE
        return
    if not type(options).shared:
        raise FuncrobustError(
            f"{command_name(type(options))} is for one process: start it without torchrun"
        )
    import torch.distributed as dist

    device: str = getattr(options, "device", "cpu")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        rank, there_are = _number("LOCAL_RANK", 0), torch.cuda.device_count()
        if rank >= there_are:
            raise FuncrobustError(
                f"a process has a GPU of its own, and here are {there_are}: --nproc-per-node "
                f"{there_are}, or --device cpu"
            )
        torch.cuda.set_device(rank)
    there = dist.is_initialized()  # a script's own, which runs several commands
    if not there:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    group = dist.group.WORLD
    assert group is not None
    _here = Processes(Shard(dist.get_rank(), size, group.group_name))
    try:
        yield _here
    finally:
        _here = _ALONE
        if not there:
            dist.destroy_process_group()


def is_loss_of_another(error: RuntimeError) -> bool:
    """Tell whether an error is what is left to see of a process that ended."""
    if _here.size == 1:
        return False
    import torch.distributed as dist

    said = str(error).lower()
    words = ("peer", "socket", "timed out", "connection", "broken pipe", "gloo", "nccl")
    told = any(word in said for word in words)
    return told or isinstance(error, dist.DistError)


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    if not said:
        return default
    if not said.isdecimal():
        raise FuncrobustError(f"{name} is {said!r}, but torchrun sets it to a number")
    return int(said)
