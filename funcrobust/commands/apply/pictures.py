"""Images in and out: a user's files, and grids with the classes above."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.decoding import LIMIT, reading, require_room
from funcrobust.data.folders import opened
from funcrobust.report import plots

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def read_images(
    paths: tuple[Path, ...], shape: tuple[int, int, int], max_bytes: int = LIMIT
) -> Tensor:
    """Read image files into (N, C, H, W) in [0, 1], cut to the shape's proportions and resized.

    Raises `FuncrobustError` for what is none, or would be more than ``max_bytes`` decoded.
    """
    from torchvision.transforms import functional as transform

    images = [transform.to_tensor(_opened(path, shape, max_bytes)) for path in paths]
    return torch.stack(images)


def _opened(path: Path, shape: tuple[int, int, int], max_bytes: int) -> object:
    from PIL import Image, ImageOps

    channels, height, width = shape
    if not os.path.exists(path):  # noqa: PTH110  (Path's raises on NUL and long names)
        raise FuncrobustError(f"no image {path}")
    with reading(path), opened(path, FORMATS) as file:
        require_room(path, 4 * math.prod(file.size), max_bytes)
        upright = ImageOps.exif_transpose(file)
        if upright.mode.startswith(("I", "F")):
            raise FuncrobustError(f"{path} has more than 8 bits a channel: save it with 8")
        # What is transparent is paper.
        layered = upright.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        image = Image.alpha_composite(paper, layered).convert("L" if channels == 1 else "RGB")
    return ImageOps.fit(image, (width, height))


def by_class(
    rows: list[tuple[str, Tensor]],
    png: Path,
    title: str,
    caption: str,
    names: tuple[str, ...],
    y: Tensor,
) -> None:
    """Write a grid of ten of the images, one of each class where there are enough."""
    index = one_of_each(y, 10)
    plots.image_grid(
        [(label, images[index]) for label, images in rows], png,
        column_labels=[names[c] for c in y[index].tolist()], title=title, caption=caption,
    )  # fmt: skip


def one_of_each(y: Tensor, most: int) -> Tensor:
    """Return the index of the first image of each class, then of others, ``most`` in all."""
    first = [int((y == c).nonzero()[0]) for c in y.unique().tolist()]
    others = [i for i in range(len(y)) if i not in set(first)]
    return torch.tensor((first + others)[:most], device=y.device)
