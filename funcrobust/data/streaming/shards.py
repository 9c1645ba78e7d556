"""WebDataset's shards: tar archives of ``key.jpg`` beside ``key.cls``, for random access.

The ``webdataset`` package reads a shard from its front to its end, and shuffles in a buffer: its
order hangs on the number of workers, and cannot be taken up in the middle. So the headers are read
once, with the standard library; then an image is a part of a file, and any order will do.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.decoding import reading
from funcrobust.data.npz import MOST_CLASSES
from funcrobust.data.streaming.encoded import Array, ShardImages, as_bytes

IMAGES = ("jpg", "jpeg", "png")
BLOCK = 512
CLASS_NAMES = "classnames.txt"


class Half(NamedTuple):
    """The images of a set's training or test half, and their labels."""

    images: ShardImages
    labels: Array


def shards_in(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the shards ``train*.tar``, and ``test*.tar`` or else ``val*.tar``, in their order."""
    train, test, val = (
        sorted(path for path in root.glob(f"{half}*.tar") if path.is_file())
        for half in ("train", "test", "val")
    )
    return train, test or val


def read_shards(root: Path) -> tuple[Half, Half, tuple[str, ...]]:
    """Index both halves; the classes' names are lines of ``classnames.txt``, or else numbers.

    Raises `FuncrobustError`, naming the file, for a half without shards, a shard that is missing
    among its numbers, damaged or truncated, an image without its class, and a class that only one
    half has.
    """
    train, test = shards_in(root)
    if not test:
        raise FuncrobustError(f"{root} has train*.tar, but neither test*.tar nor val*.tar")
    halves = (_half(train), _half(test))
    known = [set(half.labels.tolist()) for half in halves]
    if odd := sorted(known[0] ^ known[1]):
        only = "train" if odd[0] in known[0] else test[0].name[:4].rstrip("-_")
        raise FuncrobustError(f"{root}: only the {only} shards have class {odd[0]}")
    return *halves, _class_names(root, max(known[0]) + 1)


def _class_names(root: Path, count: int) -> tuple[str, ...]:
    path = root / CLASS_NAMES
    if not path.is_file():
        return tuple(map(str, range(count)))
    with reading(path):
        names = tuple(path.read_text("utf-8").splitlines())
    if len(names) < count:
        raise FuncrobustError(
            f"{path} names {len(names)} classes, but there is a label {count - 1}"
        )
    return names


def _half(shards: list[Path]) -> Half:
    _require_all(shards)
    found = [_index(shard) for shard in shards]
    images = ShardImages(
        tuple(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), [len(each.names) for each in found]),
        np.concatenate([np.array(each.offsets, np.int64) for each in found]),
        np.concatenate([np.array(each.sizes, np.int64) for each in found]),
        np.concatenate([as_bytes(each.names) for each in found]),
    )
    return Half(images, np.concatenate([np.array(each.labels, np.int64) for each in found]))


def _require_all(shards: list[Path]) -> None:
    """Refuse a gap in the shards' numbers: a copy that is not complete."""
    numbers = [re.search(r"(\d+)\.tar$", shard.name) for shard in shards]
    if not all(numbers):
        return
    said = [int(number[1]) for number in numbers if number]
    if gaps := set(range(min(said), max(said))) - set(said):
        raise FuncrobustError(
            f"{shards[0].parent}: shard {min(gaps)} is missing between {shards[0].name} and "
            f"{shards[-1].name}"
        )


class _Index(NamedTuple):
    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def _index(shard: Path) -> _Index:
    """Read a shard's headers and its classes, not its images."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    end = 0
    with reading(shard), tarfile.open(shard, "r:") as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if not member.isfile() or member.issparse():
                continue
            key, kind = _split(member.name)
            if kind in IMAGES:
                if key in images:
                    raise FuncrobustError(f"{shard} has two images of the key {key}")
                images[key] = member
            elif kind == "cls" and (file := tar.extractfile(member)):
                labels[key] = _label(file.read(32), f"{shard}, member {member.name}")
    # A tar ends with blocks of zeros; one that was cut between two members has none.
    if shard.stat().st_size < end + BLOCK:
        raise FuncrobustError(f"{shard} is truncated: it has no end")
    if not images:
        raise FuncrobustError(f"{shard} has no .jpg or .png image")
    if without := next((key for key in images if key not in labels), None):
        raise FuncrobustError(f"{shard}: {images[without].name} has no {without}.cls beside it")
    members = images.values()
    return _Index(
        [m.name for m in members], [m.offset_data for m in members], [m.size for m in members],
        [labels[key] for key in images],
    )  # fmt: skip


def _split(name: str) -> tuple[str, str]:
    """Take a member's name apart as WebDataset does: at the first dot behind the folders."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.partition(".")
    return str(path.parent / stem), kind.lower()


def _label(text: bytes, name: str) -> int:
    if not text.strip().isdigit():
        raise FuncrobustError(f"{name} must hold the number of a class, not {text!r}")
    if (label := int(text)) >= MOST_CLASSES:
        raise FuncrobustError(f"{name} must hold a class below {MOST_CLASSES}, not {label}")
    return label
