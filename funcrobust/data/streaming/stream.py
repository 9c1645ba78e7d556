"""The images of one step after another, decoded before they are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
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
        self._images, self._order, self._augment = images, order, augment
        self._shard = Shard() if shard is None else shard
        self._first = self._next = -1
        self._ahead: deque[tuple[int, int]] = deque()
        """Of each step that is under way: images, requests."""
        self._loading: DataLoader[Any] | None = None
        self._given: Iterator[Any] = iter(())

    def __call__(self, step: int) -> Tensor:
        """Return the images of one step; raises as `Streamed` does."""
        if step != self._next:
            self._begin(step)
        self._next = -1  # until all is well
        parts = [workers.images(self._given)]
        total, pieces = self._ahead.popleft()
        parts += [workers.images(self._given) for _ in range(pieces - 1)]
        self._next = step + 1
        device = self._images.device
        own = torch.cat([part.to(device, non_blocking=True) for part in parts])
        if self._shard.size == 1:
            return own
        whole = own.new_zeros((total, *own.shape[1:]))
        whole[self._shard.rank :: self._shard.size] = own
        return whole

    def __iter__(self) -> Iterator[Request]:
        """Yield what the workers are asked for, from the step on that is wanted next."""
        for step in count(self._first):
            index = self._order(step)
            own = index[self._shard.rank :: self._shard.size]
            wanted = workers.requests(self._images.numbers[own.cpu()], step)
            self._ahead.append((len(index), len(wanted)))
            yield from wanted

    def _begin(self, step: int) -> None:
        self._first = step
        self._ahead.clear()
        if self._loading is None:
            images, batch = self._images, len(self._order(step))
            self._loading = workers.loader(
                images.decoder(self._augment), self, images.workers,
                ahead=AHEAD * -(-batch // (self._shard.size * CHUNK)),
                pinned=images.device.type == "cuda",
            )  # fmt: skip
        self._given = workers.begun(self._loading)
