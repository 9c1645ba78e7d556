"""From encoded bytes to pixels: decoded by Pillow, cut to size by torchvision.

On Pillow's images, whose resampling is in whole numbers and so has the same bits on every
processor.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.decoding import reading
from funcrobust.data.folders import EIGHT_BIT, FORMATS

Cut = Callable[[Image.Image], Tensor]


def decode(content: bytes, name: str) -> Image.Image:
    """Return an image in RGB; ``name`` is what an error calls it.

    One of more pixels than Pillow thinks safe is refused: a small file may claim any number.
    """
    with reading(name), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decoded(content, name)


def _decoded(content: bytes, name: str) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.mode not in EIGHT_BIT:
            raise FuncrobustError(f"{name} is in mode {image.mode}; only 8-bit images are read")
        return image.convert("RGB")


def centred(size: int) -> Cut:
    """Resize the shorter side to 8/7 of ``size`` (256 for 224), and take the middle."""
    cut: Cut = v2.Compose([v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size), v2.PILToTensor()])
    return cut


def at_random(size: int, *, mirrored: bool) -> Cut:
    """Inception's crop: 8 to 100 % of the area, sides of 3:4 to 4:3, resized; then maybe a flip.

    Szegedy et al. 2015 (arXiv:1409.4842). Its random numbers are those of torch's global generator:
    see `seeded`.
    """
    flip = [v2.RandomHorizontalFlip()] if mirrored else []
    cut: Cut = v2.Compose([v2.RandomResizedCrop(size), *flip, v2.PILToTensor()])
    return cut


def seeded(cut: Cut, image: Image.Image, seed: int) -> Tensor:
    """Cut with random numbers that follow from ``seed``; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return cut(image)
