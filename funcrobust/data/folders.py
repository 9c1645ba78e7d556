"""A user's own set as folders of images, one folder a class."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import LIMIT, reading, require_room
from funcrobust.reading import read_file

_SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""Pillow's formats that are read: a file's content chooses the decoder, and one runs a program."""
GRAY = ("1", "L")
EIGHT_BIT = (*GRAY, "RGB", "RGBA", "P", "LA", "CMYK")
"""Pillow's modes that are read."""


def read_image_folder(root: Path, max_bytes: int = LIMIT) -> Arrays:
    """Read ``train/<class>/*.png|jpg`` and ``test`` (or ``val``); labels follow the sorted names.

    The set is gray if every image is, else RGB. Raises ``FuncrobustError`` if the halves' classes
    differ, a class has no image, or an image cannot be read or has another size (it is named); and
    for images of more than ``max_bytes`` in all, before the first is decoded.
    """
    train, test, classes = class_folders(root)
    halves = [[images_in(half / name) for name in classes] for half in (train, test)]
    size, mode = _common_format([path for half in halves for paths in half for path in paths])
    count = sum(len(paths) for half in halves for paths in half)
    require_room(root, count * size[0] * size[1] * (1 if mode == "L" else 3), max_bytes)
    x_train, x_test = (_decode([path for paths in half for path in paths], size, mode)
                       for half in halves)  # fmt: skip
    y_train, y_test = (np.repeat(np.arange(len(half)), [len(paths) for paths in half])
                       for half in halves)  # fmt: skip
    return Arrays(x_train, y_train, x_test, y_test, tuple(classes))


def class_folders(root: Path) -> tuple[Path, Path, list[str]]:
    """Return the folders of training and of test images, and the classes, which both must have.

    The test images are those in ``test``, or in ``val`` where ``test`` is not there or has no
    folders of classes (ImageNet's has no labels).
    """
    train, test, val = (root / half for half in ("train", "test", "val"))
    if val.is_dir() and not _subfolders(test):
        test = val
    classes = _classes(train)
    if odd := sorted(set(classes) ^ set(_classes(test))):
        raise FuncrobustError(f"{root}: class {odd[0]!r} is in only one of train and {test.name}")
    return train, test, classes


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _visible(path) and path.is_dir())


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FuncrobustError(
            f"{folder.parent} has no folder {folder.name!r}: an image set has train/<class>/ and "
            "test/<class>/ (or val)"
        )
    found = _subfolders(folder)
    if not found:
        raise FuncrobustError(f"{folder} is empty: it needs a folder of images for each class")
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, which has one at least, by name."""
    found = sorted(filter(is_image, folder.iterdir()))
    if not found:
        raise FuncrobustError(f"{folder} has no .png or .jpg image")
    return found


def is_image(path: Path) -> bool:
    """Tell whether a file is one that is read, by its name."""
    return path.suffix.lower() in _SUFFIXES and path.is_file() and _visible(path)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _common_format(paths: list[Path]) -> tuple[tuple[int, int], str]:
    """The (width, height) that all images share, and "L" if all are gray, else "RGB"."""
    first, *others = ((path, *header(path)) for path in paths)
    for path, size, _ in others:
        if size != first[1]:
            raise FuncrobustError(
                f"{path} is {size[0]}x{size[1]} (width x height), but {first[0]} is "
                f"{first[1][0]}x{first[1][1]}: all images must have one size, or be cut to one by "
                "--stream"
            )
    gray = all(mode in GRAY for _, _, mode in (first, *others))
    return first[1], "L" if gray else "RGB"


def header(path: Path) -> tuple[tuple[int, int], str]:
    """Return (width, height) and Pillow's mode of an image, which is not decoded."""
    with reading(path), opened(path) as image:
        if image.mode not in EIGHT_BIT:
            raise FuncrobustError(f"{path} is in mode {image.mode}; only 8-bit images are read")
        return image.size, image.mode


def opened(path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image, of which the header is read alone.

    Of the formats named: a file's content chooses the decoder, and one of PIL's runs a program.

    Raises `FuncrobustError` for what is no such image.
    """
    with warnings.catch_warnings():  # of sizes, for which there is a limit here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(read_file(path)), formats=formats)
        except UnidentifiedImageError:
            kinds = " or ".join(formats)
            raise FuncrobustError(f"cannot read {path}: it is not an image of {kinds}") from None


def _decode(paths: list[Path], size: tuple[int, int], mode: str) -> NDArray[Any]:
    width, height = size
    images = np.empty((len(paths), height, width, 1 if mode == "L" else 3), np.uint8)
    for place, path in zip(images, paths, strict=True):
        with reading(path), opened(path) as image:
            place[...] = np.asarray(image.convert(mode)).reshape(place.shape)
    return images
