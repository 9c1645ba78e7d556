"""Noise in place of an attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball, normal
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import by_rows


@dataclass(frozen=True)
class RandomSmoothing:
    """See `random_smoothing`."""

    sigma: float
    differentiable: bool = False

    def project(self, x: Tensor, center: Tensor) -> Tensor:  # noqa: ARG002 (the contract's)
        return x

    def steepest(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)

    @by_rows
    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return center + self.sigma * normal(center, generator)


def random_smoothing(sigma: float) -> Ball:
    """Build Gaussian noise in place of an attack: samples are x + σ·N(0, 1), steps stand still.

    ``robustness``'s RandomStep, for randomised smoothing (Cohen et al. 2019, arXiv:1902.02918);
    samples may leave the data bounds, as there. To train against it is to train on noisy images;
    `certify` says what a network withstands for certain when its predictions under such noise are
    put together. Raises `FuncrobustError` for σ below 0.
    """
    if not 0 <= sigma < math.inf:
        raise FuncrobustError(f"sigma must be a finite number >= 0, got {sigma}")
    return RandomSmoothing(float(sigma))
