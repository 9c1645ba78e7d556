r"""Drawing with a ψ that restores: its gradient steps, shortened, with or without fresh noise.

Where ψ restores, x − a·∇ₓℓ(θ, x, y) is an estimate D(x) of the image behind x, whatever the noise
in x; so a step that goes a part of the way, and meets less noise at the next, climbs from any start
to an image of class y (Kadkhodaie & Simoncelli 2021, arXiv:2007.13640).
"""

from __future__ import annotations

from torch import Tensor

from funcrobust.core.arguments import require_ball
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.composed import require_straight
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.examples import flat, per_example, safe_norm
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.projected_gradient import Perturbation, input_gradient
from funcrobust.core.perturbations.steps import center_of
from funcrobust.core.randomness import normal


def part_of_the_way(steps: int, remain: float = 0.01) -> float:
    """Return the share h of D(x) − x that a step should go: (1 − h)^steps = ``remain``.

    So that any number of steps ends as far from its start, and more of them are finer, not farther:
    ``psi(loss, ball, step_size=h * a, steps=steps, targeted=True)`` draws. Raises
    `FuncrobustError` unless 0 < remain < 1 and steps ≥ 1.
    """
    require_count("steps", steps, minimum=1)
    if not 0 < remain < 1:
        raise FuncrobustError(f"remain must be in (0, 1), got {remain}")
    return 1 - float(remain ** (1 / steps))


def sampler(
    loss: Loss,
    ball: Ball,
    *,
    step_size: float,
    steps: int,
    key: Tensor,
    beta: float = 0.5,
    remain: float = 0.01,
) -> Perturbation:
    """Build stochastic coarse-to-fine ascent: ψ's steps with noise of a size that falls with them.

        x ← Π( x + h·f + γ·n ),   f = −a·∇ₓℓ(θ, x, y) = D(x) − x,   n ~ N(0, I)
        γ² = ((1 − β·h)² − (1 − h)²)·‖f‖²/d,   h = (1 − remain^(1/steps))/β, at most 1

    ‖f‖/√d is the noise that ψ finds in x; of it the step takes the share h and gives back so much
    that a share 1 − βh is left (more than ``remain`` in all where h is capped at 1). ``step_size``
    a is the one that ψ was trained with, ``loss`` its own, such as `logit`. β = 1 adds nothing, and
    is `psi` with steps of h·a. Kadkhodaie & Simoncelli 2021 (arXiv:2007.13640), algorithm 1, with h
    constant and chosen by the number of steps rather than a stop.

    The noise is counted: number t of ``key`` (`fr.key`) at step t, the same for every batch of one
    shape, so give each batch a key of its own. Differentiable through every step, at the memory of
    all; pure, and nests under ``vmap`` and ``torch.compile``.

    Raises `FuncrobustError` unless 0 < β ≤ 1, 0 < remain < 1 and steps ≥ 1.
    """
    if not 0 < beta <= 1:
        raise FuncrobustError(f"beta must be in (0, 1], got {beta}")
    require_finite("step_size", step_size)
    require_ball(ball)
    require_straight(ball, "as the sampler does: it needs no such steps, take the ball behind it")
    h = min(1.0, part_of_the_way(steps, remain) / beta)
    gamma = max(0.0, (1 - beta * h) ** 2 - (1 - h) ** 2) ** 0.5
    gradient = input_gradient(loss)

    def draw(params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None) -> Tensor:
        center = center_of(ball, start, center)
        x = start
        for t in range(steps):
            g = gradient(params, x, y)
            found = step_size * safe_norm(g) / flat(g).shape[1] ** 0.5
            if gamma:
                noise = normal(key.to(x.device), t, x.shape).to(x.dtype)
                x = x + per_example((gamma * found).to(x.dtype), x) * noise
            x = ball.project(x - h * step_size * g, center)
        return x

    return draw
