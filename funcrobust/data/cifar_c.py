"""The published arrays of CIFAR-10-C (and CIFAR-100-C), read from a folder.

``NAME.npy`` holds the test images five times over, from severity 1 to 5: (5·n, 32, 32, 3), uint8.
``labels.npy`` holds their labels (Hendrycks & Dietterich 2019, arXiv:1903.12261).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.reading import user_path

LEVELS = 5


def published_folder(folder: Path | None) -> Path | None:
    """Return ``folder``, or what the archive unpacks to in it, if ``.npy`` files are there.

    Raises `FuncrobustError` for a folder that does not exist.
    """
    if folder is None:
        return None
    folder = user_path(folder)
    if not folder.exists():
        raise FuncrobustError(f"no such folder: {folder}")
    places = (folder, folder / "CIFAR-10-C", folder / "CIFAR-100-C")
    return next((place for place in places if any(place.glob("*.npy"))), None)


def require_published(folder: Path, names: Iterable[str], labels: Tensor) -> None:
    """Raise unless `published` can give the corruptions ``names``: before hours are spent on some.

    No pixel is read.
    """
    for name in names:
        _images(folder, name, labels)


def published(folder: Path, name: str, severity: int, labels: Tensor, index: Tensor) -> Tensor:
    """Return the images ``index`` of the test set under a corruption: (N, 3, 32, 32), uint8.

    ``labels`` (n,) are those of the whole test set: the folder's must be the same, or it holds
    another set. Raises `FuncrobustError` for that, and for a file that is missing or has another
    form.
    """
    images = _images(folder, name, labels)
    rows = (severity - 1) * len(labels) + index.cpu().numpy()
    return torch.from_numpy(images[rows]).permute(0, 3, 1, 2).contiguous()


def _images(folder: Path, name: str, labels: Tensor) -> NDArray[Any]:
    """Map a corruption's file, all severities; raise if it is of another form or another set."""
    images = _mapped(folder / f"{name}.npy")
    known = _mapped(folder / "labels.npy")
    count = len(labels)
    if images.shape != (LEVELS * count, 32, 32, 3) or images.dtype != np.uint8:
        raise FuncrobustError(
            f"{folder / name}.npy must be uint8 of {LEVELS * count}x32x32x3, {LEVELS} times the "
            f"{count} test images, got {images.dtype} of {'x'.join(map(str, images.shape))}"
        )
    if not np.array_equal(known, np.tile(labels.cpu().numpy(), LEVELS)):
        raise FuncrobustError(
            f"{folder / 'labels.npy'} does not hold the test images' labels, {LEVELS} times over: "
            "the arrays belong to another dataset"
        )
    return images


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FuncrobustError(f"cannot read {path}: {one_line(error)}") from error
    return array
