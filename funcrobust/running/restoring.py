"""What training a ψ to restore takes from the data: degraded images, and a step that fits them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.core.degrading import Degrade, gaussian_noise, in_shares, mixed_with
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.starts import GaussianStarts
from funcrobust.running.dataset import for_statistics
from funcrobust.running.groups import Restored


def fitting_step(shape: tuple[int, ...]) -> float:
    """Return a step along the gradient that fits images (C, H, W): d/300, 10 for CIFAR's.

    An image d times as large has d times the log-density, and a gradient as large a pixel.
    """
    return math.prod(shape) / 300


def carried(share: float, count: int) -> int:
    """Return how many of a batch's images, the first ones, carry a term on a share of them."""
    return max(1, round(share * count))


def require_equal_shares(share: float, count: int, size: int) -> None:
    """Refuse a batch of ``count`` images, of which a share carries a term, that ``size`` processes
    cannot have equal parts of.
    """
    part = carried(share, count)
    own = carried(share, count // size)
    if count % size or part % size or own * size != part:
        carrying = f", {part} of which carry a term on a share of them" if part < count else ""
        raise FuncrobustError(
            f"{size} processes cannot share batches of {count} images{carrying}: choose a batch "
            "size that both divide by them"
        )


def gaussian_starts(dataset: data.Dataset) -> GaussianStarts:
    """Take 800 images of each class: plenty for its mean and covariance; of streamed ones fewer.

    Raises `FuncrobustError` for a class of a single training image, before anything is drawn.
    """
    found, count = dataset.y_train.unique(return_counts=True)
    if rare := found[count < 2].tolist():
        raise FuncrobustError(
            f"class {rare[0]} has one training image, and Gaussian starts need two: use more "
            "images, or --mixed 0 and another --start"
        )
    return GaussianStarts(*for_statistics(dataset, 800))


def degrading(options: Restored, gaussian: GaussianStarts | None) -> Degrade:
    """Noise for some, for the others the way to a Gaussian image or to white noise.

    ``gaussian`` is needed with ``options.mixed`` alone.
    """
    noise = gaussian_noise(options.noise_low, options.noise_high)
    half = options.mixed / 2
    shares = [(half, mixed_with(of_class(gaussian))), (half, mixed_with(white))] if half else []
    if options.mixed < 1:
        shares.append((1 - options.mixed, noise))
    return in_shares(*shares)


def white(x: Tensor, _y: Tensor, draw: torch.Generator) -> Tensor:
    """Draw white noise in [0, 1]."""
    return torch.rand(x.shape, generator=draw, device=x.device, dtype=x.dtype)


def of_class(gaussian: GaussianStarts | None) -> Degrade:
    """Draw a Gaussian image of the class."""
    assert gaussian is not None
    return lambda _, y, draw: gaussian(y, draw)
