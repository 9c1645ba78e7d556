"""One projected step: the formula that FGSM, PGD and ψ share."""

from __future__ import annotations

from torch import Tensor

from funcrobust.core.balls.ball import Ball


def advance(
    ball: Ball, x: Tensor, gradient: Tensor, size: float | Tensor, center: Tensor
) -> Tensor:
    """Π(x + size · steepest(gradient)), or the ball's own ``advance`` in place of the sum.

    ``size`` is a number, or one an example that broadcasts over x.
    """
    own = getattr(ball, "advance", None)
    moved = x + size * ball.steepest(gradient) if own is None else own(x, gradient, size)
    return ball.project(moved, center)
