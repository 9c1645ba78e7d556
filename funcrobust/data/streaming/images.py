"""Images that are indexed like a tensor, and decoded at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from funcrobust.data.streaming import workers
from funcrobust.data.streaming.encoded import Encoded
from funcrobust.data.streaming.workers import Augment, Decoder


@dataclass(frozen=True, eq=False)
class Streamed:
    """Images (N, 3, S, S), uint8: ``x[index]`` is a tensor, with each image's middle.

    For the images of a training's steps see ``Stream``, which decodes ahead.
    """

    encoded: Encoded
    numbers: Tensor
    """Which of the encoded images these are, int64 (N,)."""
    size: int
    """S."""
    workers: int
    """Processes that decode; 0: this one."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the tensors go."""

    dtype = torch.uint8

    def __len__(self) -> int:
        """N."""
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def to(self, device: torch.device | str) -> Streamed:
        """Return the same images, whose tensors go to ``device``."""
        return replace(self, device=torch.device(device))

    def at(self, index: Tensor) -> Streamed:
        """Return some of the images, in this order, without decoding them."""
        return replace(self, numbers=self.numbers[index.cpu()])

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Decode some images: (n, 3, S, S) on the device.

        Raises `FuncrobustError`, which names the file, for one that is broken.
        """
        wanted = self.numbers[index.cpu() if isinstance(index, Tensor) else index]
        found = workers.room((len(wanted), *self.shape[1:]), self.device)
        first = 0
        for part in self._parts(wanted):
            found[first : first + len(part)] = part
            first += len(part)
        return found

    def parts(self) -> Iterator[Tensor]:
        """Yield all images, a few at a time."""
        return self._parts(self.numbers)

    def decoder(self, augment: Augment | None = None) -> Decoder:
        """Return what decodes one, with a random crop or in its middle."""
        return Decoder(self.encoded, self.size, augment)

    def _parts(self, numbers: Tensor) -> Iterator[Tensor]:
        wanted = workers.requests(numbers)
        # A few are there before the processes would be.
        count = 0 if len(wanted) <= 2 else min(self.workers, len(wanted))
        given = workers.begun(workers.loader(self.decoder(), wanted, count, ahead=2 * count))
        for _ in wanted:
            yield workers.images(given)
