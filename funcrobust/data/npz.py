"""A user's own set in a NumPy ``.npz`` file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import LIMIT, reading, require_room

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_CHANNELS = (1, 3)
MOST_CLASSES = 100_000


def read_npz(path: Path, max_bytes: int = LIMIT) -> Arrays:
    """Read ``x_train, y_train, x_test, y_test`` and, if there, ``class_names``.

    Images are (N, H, W, C), (N, C, H, W) with C of 1 or 3, or gray (N, H, W); uint8, or floats
    in [0, 1]. Labels are integers (N,) or (N, 1). Without ``class_names`` every class from 0 to
    the largest label must occur in ``y_train``. Nothing pickled is read. Raises
    ``FuncrobustError`` otherwise, and for arrays that claim more than ``max_bytes`` before they are
    read; values are checked where the ``Dataset`` is made.
    """
    if not path.is_file():
        raise FuncrobustError(f"no such file: {path}")
    if not zipfile.is_zipfile(path):
        raise FuncrobustError(f"{path} is not a .npz file")
    with reading(path):
        _require_room(path, max_bytes)
    with reading(path), np.load(path, allow_pickle=False) as file:
        if missing := [key for key in _KEYS if key not in file.files]:
            raise FuncrobustError(f"{path} lacks {', '.join(missing)}; it has {_found(file.files)}")
        arrays = {key: file[key] for key in _KEYS}
        names = file["class_names"] if "class_names" in file.files else None
    x_train, x_test = (_channels_last(path, key, arrays[key]) for key in ("x_train", "x_test"))
    y_train, y_test = (_flat(arrays[key]) for key in ("y_train", "y_test"))
    classes = _class_names(path, y_train) if names is None else _named_classes(path, names)
    return Arrays(x_train, y_train, x_test, y_test, classes)


def _require_room(path: Path, max_bytes: int) -> None:
    """Add up what the arrays' own headers and the zip's directory claim, and refuse too much.

    An array is allocated by its header, whatever follows it.
    """
    total = 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.removesuffix(".npy") not in (*_KEYS, "class_names"):
                continue
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, _, kind = read(file)
            claimed = math.prod(shape) * kind.itemsize
            if claimed > info.file_size or min(shape, default=0) < 0:
                raise FuncrobustError(f"{path}: {info.filename} is shorter than its header says")
            total += info.file_size
    require_room(path, total, max_bytes)


def _named_classes(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) > MOST_CLASSES:
        raise FuncrobustError(
            f"{path}: class_names must be texts (C,), at most {MOST_CLASSES}, got {names.dtype} "
            f"{names.shape}"
        )
    return tuple(map(str, names))


def _channels_last(path: Path, key: str, x: NDArray[Any]) -> NDArray[Any]:
    if x.ndim == 3:
        return x[..., None]
    if x.ndim != 4:
        raise FuncrobustError(f"{path}: {key} must have 3 or 4 axes, got shape {x.shape}")
    first, last = x.shape[1] in _CHANNELS, x.shape[3] in _CHANNELS
    if first == last:
        problem = "is ambiguous" if first else "has no channel axis"
        raise FuncrobustError(
            f"{path}: the shape {x.shape} of {key} {problem}: exactly one of axis 1 (NCHW) and "
            "axis 3 (NHWC) must be 1 or 3"
        )
    return x.transpose(0, 2, 3, 1) if first else x


def _flat(y: NDArray[Any]) -> NDArray[Any]:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _class_names(path: Path, y: NDArray[Any]) -> tuple[str, ...]:
    """Number the classes; a gap is refused, since it is more often a slip than meant."""
    if y.dtype.kind not in "iu" or y.ndim != 1 or y.size == 0:
        return ("0",)  # the check of the labels, next, says what is wrong with them
    present = np.unique(y)
    present = present[present >= 0]
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if gaps.size:
        raise FuncrobustError(
            f"{path}: label {gaps[0]} never occurs in y_train, whose largest is {present[-1]}; "
            "number the classes from 0, or add class_names"
        )
    return tuple(str(label) for label in range(len(present)))


def _found(keys: list[str]) -> str:
    return ", ".join(keys[:8]) or "nothing"
