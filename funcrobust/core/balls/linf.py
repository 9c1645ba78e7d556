"""The L∞ ball, with steps by sign, or by a smooth stand-in for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.arguments import require_number
from funcrobust.core.balls.ball import (
    IMAGES,
    Ball,
    Bounds,
    checked_bounds,
    checked_largest,
    inside,
    require_center,
    require_float,
    uniform,
    uniform_in_bounds,
)
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import largest_to_one, per_example, squared_norm
from funcrobust.core.randomness import by_rows


@dataclass(frozen=True)
class Linf:
    """See `linf`."""

    radius: float
    bounds: Bounds = IMAGES
    differentiable: bool = False

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        require_float(x, center)
        if math.isinf(self.radius):
            return inside(x, self.bounds)
        return inside(center + (x - center).clamp(-self.radius, self.radius), self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    @by_rows
    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        require_center(self, center)
        if math.isinf(self.radius):
            return uniform_in_bounds(self.bounds, center, generator)
        u = 2.0 * uniform(center, generator) - 1.0
        return self.project(center + self.radius * u, center)


@dataclass(frozen=True)
class SmoothLinf(Linf):
    """See `smooth_linf`."""

    differentiable: bool = True
    temperature: float = 0.1

    def steepest(self, gradient: Tensor) -> Tensor:
        scaled = largest_to_one(gradient)
        mean_square = squared_norm(scaled) / gradient.shape[1:].numel()
        # At least 1/d, the largest entry being 1; where the gradient is 0 it is kept off 0.
        rms = mean_square.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        steep = torch.tanh(scaled / (self.temperature * per_example(rms, gradient)))
        return steep.to(gradient.dtype)


def linf(radius: float, *, bounds: Bounds = IMAGES) -> Ball:
    """Build the L∞ ball {x : ‖x − center‖_∞ ≤ radius}; its steepest direction is sign(∇).

    ``radius`` is in units of the data (8/255 is CIFAR-10's usual one), ``inf`` leaves only the
    bounds. ``sign`` has derivative zero, so `psi` refuses this ball. Samples are uniform in the
    ball, then clamped to the bounds (uniform in the bounds for ``inf``). ``bounds`` are the data's
    least and greatest value, or None where it has none. Raises `FuncrobustError` for a radius below
    0 or NaN, for gray levels (above 3 for images in [0, 1]), and in sampling for a centre outside
    the bounds, or where all is infinite.
    """
    checked = checked_bounds(bounds)
    return Linf(checked_largest(radius, checked), checked)


def smooth_linf(radius: float, *, temperature: float = 0.1, bounds: Bounds = IMAGES) -> Ball:
    """Build the L∞ ball with a smooth steepest direction, for use inside `psi`.

    tanh(∇/(τ·rms(∇))) per example stands for sign(∇), which has no derivative; τ is the
    ``temperature``, and τ → 0 is `linf`. Entries much larger than τ times the root mean square move
    by the whole step, those much smaller in proportion. Raises `FuncrobustError` for a radius below
    0 or a temperature that is not positive.
    """
    temperature = require_number("the temperature", temperature)
    if not 0 < temperature < math.inf:
        raise FuncrobustError(f"temperature must be a finite number > 0, got {temperature}")
    checked = checked_bounds(bounds)
    return SmoothLinf(checked_largest(radius, checked), checked, temperature=temperature)
