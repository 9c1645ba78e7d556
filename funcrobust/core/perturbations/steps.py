"""What FGSM, PGD, Auto-PGD and ψ share: a projected step, its length, and where the ball lies."""

from __future__ import annotations

import math

from torch import Tensor

from funcrobust.core.arguments import require_ball
from funcrobust.core.balls.ball import Ball, require_center, require_float
from funcrobust.core.errors import FuncrobustError, require_finite


def advance(
    ball: Ball, x: Tensor, gradient: Tensor, size: float | Tensor, center: Tensor
) -> Tensor:
    """Π(x + size · steepest(gradient)), or the ball's own ``advance`` in place of the sum.

    ``size`` is a number, or one an example that broadcasts over x.
    """
    own = getattr(ball, "advance", None)
    moved = x + size * ball.steepest(gradient) if own is None else own(x, gradient, size)
    return ball.project(moved, center)


def center_of(ball: Ball, start: Tensor, center: Tensor | None) -> Tensor:
    """Return where the ball lies, ``start`` unless given; raise as `require_center` does."""
    center = start if center is None else center
    require_float(start, center)
    require_center(ball, center)
    return center


def share_of(steps: int) -> float:
    """Return the share of the radius that each of ``steps`` PGD steps is long by default.

    2.5 radii in all, so that from any start they can cross the ball (the rule of Madry's
    ``robustness``): radius/4 for ten steps, and for more of them too, as is published (2/255 of
    8/255, PGD-50). At most 1.25, what one step from a random start takes (Wong et al. 2020).
    """
    return min(max(2.5 / max(steps, 1), 0.25), 1.25)


def step_length(given: float | None, ball: Ball, share: float) -> float:
    """Return the step size that was given, or else ``share`` of the radius; raise for none."""
    require_ball(ball)
    if given is not None:
        return require_finite("step_size", given)
    if getattr(ball, "steps_apart", False):
        raise FuncrobustError(
            f"{ball} confines by one ball and steps by another, whose lengths are no share of the "
            "radius: give a step size in the units of the steps"
        )
    radius = getattr(ball, "radius", math.inf)
    if not math.isfinite(radius):
        raise FuncrobustError(f"{ball} has no finite radius to take a step size from: give one")
    return float(share * radius)
