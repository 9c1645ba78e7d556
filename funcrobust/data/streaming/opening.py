"""From a folder to a set whose images are decoded when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.folders import GRAY, class_folders, header, images_in
from funcrobust.data.streaming.encoded import Array, Encoded, FileImages, as_bytes
from funcrobust.data.streaming.images import Streamed
from funcrobust.data.streaming.shards import read_shards, shards_in
from funcrobust.data.streaming.workers import usual_workers

LOOKED_AT = 64
"""Images whose headers tell how large all are."""


@dataclass(frozen=True)
class Streaming:
    """Whether, and how, a folder's images are decoded when they are wanted."""

    wanted: bool | None = None
    """None: where memory may not hold them all, and where they lie in shards."""
    size: int | None = None
    """The side of the square that each is cut to; None: 224."""
    workers: int | None = None
    """Processes that decode; None: one for each processor but one, at most 8."""
    fitting: int | None = None
    """In place of 224: the size that a network takes."""


@dataclass(frozen=True)
class Found:
    """A set's encoded images with their labels."""

    halves: tuple[tuple[Encoded, Array], tuple[Encoded, Array]]
    class_names: tuple[str, ...]

    def streamed(self, streaming: Streaming) -> tuple[tuple[Streamed, Tensor], ...]:
        """Return each half's images (N, 3, S, S) and labels (N,)."""
        size = streaming.size or streaming.fitting or 224
        workers = usual_workers() if streaming.workers is None else streaming.workers
        return tuple(
            (Streamed(images, torch.arange(len(images)), size, workers), torch.from_numpy(labels))
            for images, labels in self.halves
        )


def to_stream(root: Path, streaming: Streaming, max_bytes: int) -> Found | None:
    """Return what is to be streamed of the folder, or None if it is to be read into memory.

    By itself what would be more than ``max_bytes`` of pixels there, by the headers of some.
    """
    if shards_in(root)[0]:
        if streaming.wanted is False:
            raise FuncrobustError(f"{root}: shards are streamed only, leave --no-stream out")
        train, test, names = read_shards(root)
        return Found((train, test), names)
    if streaming.wanted is False:
        return None
    train_folder, test_folder, classes = class_folders(root)
    train_half = _half(root, train_folder, classes)
    test_half = _half(root, test_folder, classes)
    found = Found((train_half, test_half), tuple(classes))
    large = sum(_pixel_bytes(images) for images, _ in (train_half, test_half)) > max_bytes
    return found if streaming.wanted or large else None


def _half(root: Path, folder: Path, classes: list[str]) -> tuple[FileImages, Array]:
    paths, counts = [], []
    for name in classes:
        found = images_in(folder / name)
        paths.append(as_bytes([str(path.relative_to(root)) for path in found]))
        counts.append(len(found))
    return FileImages(root, np.concatenate(paths)), np.repeat(np.arange(len(classes)), counts)


def _pixel_bytes(images: FileImages) -> float:
    """Estimate what the images take when decoded, from the headers of some."""
    looked_at = np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)
    headers = [header(images.path(number)) for number in looked_at]
    channels = 1 if all(mode in GRAY for _, mode in headers) else 3
    return channels * len(images) * float(np.mean([math.prod(size) for size, _ in headers]))
