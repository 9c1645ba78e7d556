"""The data bounds alone, with steps along the gradient as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.balls.ball import (
    IMAGES,
    Ball,
    Bounds,
    checked_bounds,
    inside,
    require_center,
    require_float,
    uniform_in_bounds,
)
from funcrobust.core.randomness import by_rows


@dataclass(frozen=True)
class Unconstrained:
    """See `unconstrained`."""

    bounds: Bounds = IMAGES
    differentiable: bool = True

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        require_float(x, center)
        return inside(x, self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient

    @by_rows
    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        require_center(self, center)
        return uniform_in_bounds(self.bounds, center, generator)


def unconstrained(*, bounds: Bounds = IMAGES) -> Ball:
    """Build the data bounds alone; the steepest direction is the gradient itself, unnormalised.

    Gradients are per example, so a step size here equals one of a batch-mean loss (as in
    ``robustness``) divided by the batch size. Samples are uniform in the bounds, and raise
    `FuncrobustError` where these are infinite or None.
    """
    return Unconstrained(checked_bounds(bounds))
