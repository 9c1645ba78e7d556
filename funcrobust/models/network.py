"""A row of a family's table: how one of its networks is made, and what it is made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from funcrobust.models.normalized import CIFAR10_MEAN, CIFAR10_STD


@dataclass(frozen=True)
class Network:
    """One network: ``make(num_classes=, in_channels=)``, and the data that it is usual for.

    ``image_size`` is the usual height and width, and with ``fixed_size`` the only one;
    ``num_classes``, ``mean`` and ``std`` (a number for each of three channels, in [0, 1]) are
    `build`'s defaults.
    """

    make: Callable[..., nn.Module]
    image_size: int = 32
    fixed_size: bool = False
    num_classes: int = 10
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
