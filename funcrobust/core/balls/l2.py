"""The L2 ball, with steps of unit length along the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.balls.ball import (
    IMAGES,
    Ball,
    Bounds,
    checked_bounds,
    checked_radius,
    inside,
    normal,
    require_center,
    require_float,
)
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import per_example, squared_norm, unit
from funcrobust.core.randomness import by_rows, drawn


@dataclass(frozen=True)
class L2:
    """See `l2`."""

    radius: float
    bounds: Bounds = IMAGES
    differentiable: bool = True

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        require_float(x, center)
        if math.isinf(self.radius):
            return inside(x, self.bounds)
        delta = x - center
        squared = per_example(squared_norm(delta), x)
        outside = squared > self.radius**2
        # The inner where keeps sqrt'(0) = inf out of the derivative at the ball's centre.
        norm = torch.where(outside, squared, 1.0).sqrt()
        # By rows: torch.where over whole images costs a CPU ten of their products.
        shrunk = delta * torch.where(outside, self.radius / norm, 1.0).to(x.dtype)
        return inside(center + shrunk, self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return unit(gradient)

    @by_rows
    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        require_center(self, center)
        if math.isinf(self.radius):
            raise FuncrobustError("an L2 ball of infinite radius has no uniform start: give one")
        direction = self.steepest(normal(center, generator))
        u = drawn(torch.rand, center.shape[:1], generator, center)
        # A uniform point of a d-ball has its radius distributed as u^(1/d).
        radius = self.radius * u.to(center.dtype) ** (1.0 / center.shape[1:].numel())
        return self.project(center + per_example(radius, center) * direction, center)


def l2(radius: float, *, bounds: Bounds = IMAGES) -> Ball:
    """Build the L2 ball {x : ‖x − center‖₂ ≤ radius}; its steepest direction is ∇/‖∇‖₂.

    ``radius`` is in units of the data over the whole example (0.5 is CIFAR-10's usual one), ``inf``
    leaves only the bounds. Samples are uniform in the ball, then clamped to the ``bounds`` (those
    of the data; None: it has none). Raises `FuncrobustError` for a radius below 0 or NaN, and in
    sampling for a centre outside the bounds or an infinite ball.
    """
    return L2(checked_radius(radius), checked_bounds(bounds))
