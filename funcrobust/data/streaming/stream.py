"""The images of one step after another, decoded before they are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from funcrobust.core.shards import Shard
from funcrobust.data.streaming import workers
from funcrobust.data.streaming.images import Streamed
from funcrobust.data.streaming.workers import CHUNK, Augment, Request

Order = Callable[[int], Tensor]
"""``step -> index``: which images a step has, int64 (B,). It must know every step, past the last
one too."""

AHEAD = 2
"""Batches that are decoded ahead."""


@dataclass(eq=False)
class _Asked:
    """What the workers are asked for: one step's images after another's, from ``first`` on."""

    numbers: Tensor
    order: Order
    shard: Shard
    first: int = 0
    under_way: deque[tuple[int, int]] = field(default_factory=deque)
    """Of each step that was asked for and not yet given: images, requests."""

    def __iter__(self) -> Iterator[Request]:
        for step in count(self.first):
            index = self.order(step)
            own = index[self.shard.rank :: self.shard.size]
            wanted = workers.requests(self.numbers[own.cpu()], step)
            self.under_way.append((len(index), len(wanted)))
            yield from wanted


class Stream:
    """``step -> images`` (B, 3, S, S): those that ``order`` says, cut as ``augment`` says.

    Worker processes decode the steps that follow; a step out of turn begins anew there. With a
    ``shard`` only its own rows are decoded: the others, which are for other processes, stay black.
    """

    def __init__(
        self,
        images: Streamed,
        order: Order,
        *,
        augment: Augment | None = None,
        shard: Shard | None = None,
    ) -> None:
        # Apart from the stream, which then ends, with its workers, when nobody holds it any more.
        self._asked = _Asked(images.numbers, order, Shard() if shard is None else shard)
        self._images, self._augment = images, augment
        self._next = -1
        self._loading: DataLoader[Any] | None = None
        self._given: Iterator[Any] = iter(())

    def __call__(self, step: int) -> Tensor:
        """Return the images of one step; raises as `Streamed` does."""
        if step != self._next:
            self._begin(step)
        self._next = -1  # until all is well
        parts = [workers.images(self._given)]
        total, pieces = self._asked.under_way.popleft()
        parts += [workers.images(self._given) for _ in range(pieces - 1)]
        self._next = step + 1
        shard, device = self._asked.shard, self._images.device
        whole = workers.room((total, *self._images.shape[1:]), device)
        if shard.size > 1:
            whole.zero_()
        own, first = whole[shard.rank :: shard.size], 0
        for part in parts:
            own[first : first + len(part)].copy_(part, non_blocking=True)
            first += len(part)
        return whole

    def _begin(self, step: int) -> None:
        self._asked.first = step
        self._asked.under_way.clear()
        if self._loading is None:
            images, batch = self._images, len(self._asked.order(step))
            self._loading = workers.loader(
                images.decoder(self._augment), self._asked, images.workers,
                ahead=AHEAD * -(-batch // (self._asked.shard.size * CHUNK)),
                pinned=images.device.type == "cuda",
            )  # fmt: skip
        self._given = workers.begun(self._loading)
