"""The 15 common corruptions of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).

The severities are the constants of the script that made CIFAR-10-C: milder ones than ImageNet-C's,
which are all that libraries offer. So what is particular to the benchmark (its disk, fractal fog,
motion blur, zoom and photographs of frost) is that of ``imagecorruptions``, called with
CIFAR-10-C's constants; the rest is numpy, scipy, scikit-image, OpenCV and Pillow, as in the paper's
own code.

What is computed here is CIFAR-10-C in distribution, not to the bit: the random draws are others,
and so are the build of the JPEG codec and the motion blur, a port of ImageMagick's. The published
bits are read by `cifar_c`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, extra, unknown_name
from funcrobust.core.randomness import derive_seed
from funcrobust.data.streaming.images import Streamed

Array = NDArray[Any]
SIDE = 32


class Corruption(NamedTuple):
    """An operation, and its constants at severities 1 to 5."""

    apply: Callable[[Array, Any, np.random.Generator], Array]
    """From an image (32, 32, 3), uint8, to one in the same units, of any type, not clipped."""
    constants: tuple[Any, Any, Any, Any, Any]


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    numbers: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Return the images under the corruption ``name``: uint8, shape and device of ``images``.

    Every image has random numbers of its own, a function of (seed, name, severity, its number), so
    neither the batch it comes in nor any global random state matters; those are left as they were.
    Values are cut to 0 ... 255 and the fraction is dropped, as in CIFAR-10-C.

    Args:
        images: (N, 3, 32, 32), uint8.
        name: one of `NAMES`.
        severity: 1 to 5.
        seed: of the random numbers.
        numbers: each image's number in its set, (N,); left out: 0 to N - 1.

    Raises:
        FuncrobustError: images of another shape or type, an unknown name or severity, not a number
            for each image, or the library is not installed.
    """
    require_corruptible(images)
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, NAMES)
    if severity not in SEVERITIES:
        raise FuncrobustError(f"severity must be a whole number from 1 to 5, got {severity!r}")
    counts = [int(number) for number in (range(len(images)) if numbers is None else numbers)]
    if len(counts) != len(images):
        raise FuncrobustError(f"{len(counts)} numbers for {len(images)} images: one each is needed")
    apply, constants = CORRUPTIONS[name]
    corrupted = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for place, image, number in zip(corrupted, _pixels(images), counts, strict=True):
        rng = np.random.default_rng(derive_seed(seed, f"corruption/{name}/{severity}", number))
        place[...] = np.clip(apply(image, constants[severity - 1], rng), 0, 255).astype(np.uint8)
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).contiguous().to(images.device)


def require_corruptible(images: Tensor | Streamed) -> None:
    """Raise unless the images are (N, 3, 32, 32), uint8, and the library is installed.

    CIFAR-10-C's constants are for images of that size alone.
    """
    if len(images.shape) != 4 or images.shape[1:] != (3, SIDE, SIDE) or images.dtype != torch.uint8:
        raise FuncrobustError(
            "CIFAR-10-C's corruptions are made for uint8 images of 3x32x32, got "
            f"{str(images.dtype).removeprefix('torch.')} of {'x'.join(map(str, images.shape[1:]))}"
        )
    _library()


def _pixels(images: Tensor) -> Array:
    """(N, 3, H, W) to an array (N, H, W, 3)."""
    return np.ascontiguousarray(images.cpu().permute(0, 2, 3, 1).numpy())


@cache
def _library() -> Any:
    with extra("corruptions", "corruptions need imagecorruptions-imaug"):
        from imagecorruptions import corruptions
    return corruptions


@contextmanager
def _numpy_seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed numpy's global random numbers from ``rng``, and put them back afterwards."""
    state = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(state)


# --- noise --------------------------------------------------------------------------------------


def _gaussian_noise(x: Array, scale: float, rng: np.random.Generator) -> Array:
    return 255 * (x / 255 + rng.normal(scale=scale, size=x.shape))


def _shot_noise(x: Array, rate: float, rng: np.random.Generator) -> Array:
    return 255 * rng.poisson(rate * (x / 255)) / rate


def _impulse_noise(x: Array, amount: float, rng: np.random.Generator) -> Array:
    from skimage.util import random_noise

    noisy: Array = random_noise(x / 255, mode="s&p", rng=rng, amount=amount)
    return 255 * noisy


# --- blur ---------------------------------------------------------------------------------------


def _defocus_blur(x: Array, constants: tuple[float, float], _: np.random.Generator) -> Array:
    import cv2

    radius, alias_blur = constants
    kernel = _library().disk(radius, alias_blur=alias_blur)
    blurred: Array = cv2.filter2D(x / 255, -1, kernel)
    return 255 * blurred


def _glass_blur(x: Array, constants: tuple[float, int], rng: np.random.Generator) -> Array:
    """Blur, move the pixels at random a few times, blur again.

    The script of CIFAR-10-C walks up from the last pixel, to swap each with one that lies 0 or 1
    above it and 0 or 1 to its left. Its swap of two views of one array only copies, and from where
    it has not been yet: so a round is one look-up.
    """
    sigma, rounds = constants
    glass = (255 * _gaussian(x / 255, sigma)).astype(np.uint8)
    inner = np.arange(2, SIDE)
    for _ in range(rounds):
        up, left = rng.integers(2, size=(2, len(inner), len(inner)))
        glass[2:, 2:] = glass[inner[:, None] - up, inner - left]
    return 255 * _gaussian(glass / 255, sigma)


def _motion_blur(x: Array, constants: tuple[int, float], rng: np.random.Generator) -> Array:
    return _moved(x, *constants, angle=rng.uniform(-45, 45))


def _zoom_blur(x: Array, most: float, _: np.random.Generator) -> Array:
    image = (x / 255).astype(np.float32)
    factors = np.arange(1, most, 0.01)
    total = image + sum(_zoomed(image, factor) for factor in factors)
    return 255 * total / (len(factors) + 1)


# --- weather ------------------------------------------------------------------------------------


def _snow(x: Array, constants: tuple[float, ...], rng: np.random.Generator) -> Array:
    import cv2

    mean, scale, zoom, threshold, radius, sigma, kept = constants
    flakes = rng.normal(mean, scale, (SIDE, SIDE, 1))
    flakes = _zoomed(flakes, zoom)[..., 0]
    flakes[flakes < threshold] = 0
    flakes = (255 * np.clip(flakes, 0, 1)).astype(np.uint8)
    flakes = _moved(flakes, int(radius), sigma, angle=rng.uniform(-135, -45))[..., None] / 255
    image = (x / 255).astype(np.float32)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    whitened = kept * image + (1 - kept) * np.maximum(image, 1.5 * gray + 0.5)
    snowed: Array = whitened + flakes + np.rot90(flakes, 2)
    return 255 * snowed


def _frost(x: Array, constants: tuple[float, float], rng: np.random.Generator) -> Array:
    kept, added = constants
    frost = _photographs()[rng.integers(5)]  # CIFAR-10-C never draws the sixth
    top, left = (rng.integers(size - SIDE) for size in frost.shape[:2])
    return kept * x + added * frost[top : top + SIDE, left : left + SIDE]


@cache
def _photographs() -> list[Array]:
    """The library's first five photographs of frost, RGB, at a fifth of their size."""
    import cv2

    folder = resources.files("imagecorruptions") / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    found = []
    for name in names:
        with (folder / name).open("rb") as file:
            photograph = np.asarray(Image.open(file).convert("RGB"))
        found.append(cv2.resize(photograph, (0, 0), fx=0.2, fy=0.2))
    return found


def _fog(x: Array, constants: tuple[float, float], rng: np.random.Generator) -> Array:
    amount, decay = constants
    with _numpy_seeded(rng):
        fog = _library().plasma_fractal(mapsize=SIDE, wibbledecay=decay)
    image = x / 255
    most = image.max()
    fogged: Array = (image + amount * fog[..., None]) * most / (most + amount)
    return 255 * fogged


def _brightness(x: Array, added: float, _: np.random.Generator) -> Array:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(x / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    rgb: Array = hsv2rgb(hsv)
    return 255 * rgb


# --- digital ------------------------------------------------------------------------------------


def _contrast(x: Array, kept: float, _: np.random.Generator) -> Array:
    image = x / 255
    mean = image.mean((0, 1))
    flatter: Array = (image - mean) * kept + mean
    return 255 * flatter


def _elastic_transform(
    x: Array, constants: tuple[float, float, float], rng: np.random.Generator
) -> Array:
    """Move three corners at random (in pixels), then every pixel by a smooth random field."""
    import cv2
    from scipy.ndimage import gaussian_filter, map_coordinates

    strength, sigma, corners = (SIDE * share for share in constants)
    middle, arm = SIDE // 2, SIDE // 3
    low, high = middle - arm, middle + arm
    before = np.array([[high, high], [high, low], [low, low]], np.float32)
    after = before + rng.uniform(-corners, corners, before.shape).astype(np.float32)
    image = cv2.warpAffine(
        (x / 255).astype(np.float32), cv2.getAffineTransform(before, after), (SIDE, SIDE),
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    fields = rng.uniform(-1, 1, (2, SIDE, SIDE))
    across, down = (
        strength * gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in fields
    )
    rows, columns = np.mgrid[:SIDE, :SIDE]
    place = (rows + down, columns + across)
    moved: Array = np.stack(
        [map_coordinates(c, place, order=1, mode="reflect") for c in np.moveaxis(image, 2, 0)],
        axis=2,
    )
    return 255 * moved


def _pixelate(x: Array, share: float, _: np.random.Generator) -> Array:
    small = int(SIDE * share)
    image = Image.fromarray(x).resize((small, small), Image.Resampling.BOX)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _jpeg_compression(x: Array, quality: int, _: np.random.Generator) -> Array:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=quality)
    decoded: Array = np.asarray(Image.open(file))
    return decoded


# --- what several of them take ------------------------------------------------------------------


def _gaussian(image: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    blurred: Array = gaussian_filter(image, sigma, mode="nearest", axes=(0, 1))
    return blurred


def _moved(x: Array, radius: int, sigma: float, *, angle: float) -> Array:
    """Blur along a line at an angle in degrees; rounded, since ImageMagick gives whole numbers."""
    moved: Array = _library()._motion_blur(x, radius, sigma, angle)
    return moved.round()


def _zoomed(image: Array, factor: float) -> Array:
    """Magnify the middle of an image (H, W, C): its size stays."""
    zoomed: Array = _library().clipped_zoom(image, factor)
    top, left = (
        (after - now) // 2 for after, now in zip(zoomed.shape, image.shape[:2], strict=False)
    )
    return zoomed[top : top + image.shape[0], left : left + image.shape[1]]


# --- the table ----------------------------------------------------------------------------------

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS = {
    # the standard deviation, in units of [0, 1]
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    # photons of a full pixel
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    # the share of values that become 0 or 1
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    # the disk's radius, and the standard deviation of its own blur
    "defocus_blur": Corruption(
        _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    # the blur's standard deviation, and how often pixels move
    "glass_blur": Corruption(_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    # radius and standard deviation along the way
    "motion_blur": Corruption(_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    # the end of the magnifications 1, 1.01, ... that are averaged
    "zoom_blur": Corruption(_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    # mean and deviation of the flakes' noise, its zoom and threshold, motion, the image's share
    "snow": Corruption(
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    # shares of the image and of the frost
    "frost": Corruption(_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    # the fog's share, and how fast its fractal gets smooth
    "fog": Corruption(_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    # what is added to the value of HSV
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    # the share of the distance to each channel's mean that is left
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    # in sides of the image: the field's strength and smoothness, how far the corners go
    "elastic_transform": Corruption(
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    # the share of the side that is left
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    # the codec's quality
    "jpeg_compression": Corruption(_jpeg_compression, (80, 65, 58, 50, 40)),
}

NAMES = tuple(CORRUPTIONS)
"""In the paper's order: noise, blur, weather, digital."""
