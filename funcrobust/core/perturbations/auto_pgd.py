r"""Auto-PGD: PGD with momentum that halves its own steps (Croce & Hein 2020, arXiv:2003.01690).

Algorithm 1, from x_0, with η_0 = 2ε:

    z_{t+1} = Π( x_t + η_t·steepest(∇ₓℓ(x_t)) )
    x_{t+1} = Π( x_t + a·(z_{t+1} − x_t) + (1 − a)·(x_t − x_{t−1}) ),    a = ¾  (1 at t = 0)

At checkpoints w_j the step is halved, and the walk goes on from the best x so far, where since the
last one (condition 1) at most ρ of the steps raised the loss, or (condition 2) the step was not
halved and the best loss has not grown. The stretches between them shrink: w_1 = 0.22·T, each
0.03·T shorter, none shorter than 0.06·T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.arguments import require_loss
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.examples import at_least_single, per_example
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.ascent import Ascent, AscentState, climb
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.perturbations.steps import advance, center_of, step_length


def apgd(
    loss: Loss,
    ball: Ball,
    *,
    steps: int = 100,
    step_size: float | None = None,
    rho: float = 0.75,
    targeted: bool = False,
) -> Perturbation:
    """Build Auto-PGD (Croce & Hein 2020, arXiv:2003.01690, algorithm 1).

    Returns, per example, that x of x_0 … x_T whose ``loss`` is greatest (least if ``targeted``),
    after ``steps`` T steps and T + 1 evaluations. In AutoAttack the loss is `cross_entropy`, `dlr`
    or, toward each class in turn, `targeted_dlr`, and the ball `linf` or `l2`; any of either will
    do. For ψ's derivative through steps see `psi`: here the best point is what is wanted, and the
    unrolled derivative is the only one.

    ``step_size`` is the first step, in units of the data, 2·radius unless given. ``rho`` ρ in
    [0, 1] is the share of the steps between two checkpoints that must raise the loss: where no more
    do, the step is halved.

    Raises `FuncrobustError` for fewer than one step, a ρ outside [0, 1], a step size that is
    negative or not finite, and, where none is given, a ball with no finite radius to take it from
    or one of `with_steps`.
    """
    require_loss(loss)
    ascent = auto_ascent(ball, steps=steps, step_size=step_size, rho=rho)

    def ascended(params: Params, x: Tensor, y: Tensor) -> Tensor:
        values = loss(params, x, y)
        return -values if targeted else values

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        center = center_of(ball, start, center)
        start = ball.project(start, center)  # or the best of all could lie outside
        return climb(ascended, ascent, steps + 1, params, start, y, center)["best"]

    return perturb


def auto_ascent(
    ball: Ball, *, steps: int = 100, step_size: float | None = None, rho: float = 0.75
) -> Ascent:
    """Build the ascent of Auto-PGD: ``best`` of its state is the best x looked at so far.

    ``steps`` T, at least 1, sets where the checkpoints lie; ``step_size`` is η_0, 2·radius unless
    given; ``rho`` ρ in [0, 1]. All of a row's counters are in its state.

    As in the authors' code the first step counts as one that raised the loss where the loss after
    it is above 0 (rather than above the loss at the start), so that the iterates are theirs.
    """
    require_count("steps", steps, minimum=1)
    if not 0 <= rho <= 1:
        raise FuncrobustError(f"rho must be in [0, 1], got {rho}")
    first_size = step_length(step_size, ball, 2.0)
    longest, shortest, shorter = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))

    def init(start: Tensor) -> AscentState:
        row = start.new_zeros(len(start))
        count = at_least_single(row)  # whole numbers, which bfloat16 has no more of than to 256
        return {
            "x": start, "previous": start, "best": start, "best_gradient": torch.zeros_like(start),
            "best_loss": row - torch.inf, "last_loss": row, "checked_loss": row,
            "size": row + first_size, "looks": count, "since": count, "rises": count,
            "period": count + longest, "halved": count + 1,
        }  # fmt: skip

    def update(s: AscentState, losses: Tensor, gradient: Tensor, center: Tensor) -> AscentState:
        x, first, losses = s["x"], s["looks"] == 0, losses.detach()
        better = losses > s["best_loss"]
        best, best_gradient = (
            torch.where(per_example(better, x), new, s[old])
            for new, old in ((x, "best"), (gradient, "best_gradient"))
        )
        best_loss = torch.where(better, losses, s["best_loss"])
        checked_loss = torch.where(first, losses, s["checked_loss"])
        since = torch.where(first, 0.0, s["since"] + 1)
        rises = torch.where(first, 0.0, s["rises"] + (losses > s["last_loss"]))

        due = since == s["period"]
        oscillates = rises <= rho * s["period"]
        stalls = (s["halved"] == 0) & (checked_loss >= best_loss)
        halves = due & (oscillates | stalls)
        back = per_example(halves, x)
        x, gradient = torch.where(back, best, x), torch.where(back, best_gradient, gradient)
        size = torch.where(halves, s["size"] / 2, s["size"])

        z = advance(ball, x, gradient, per_example(size, x), center)
        a = per_example(torch.where(first, 1.0, 0.75), x).to(x.dtype)
        mixed = x + a * (z - x) + (1 - a) * (x - s["previous"])
        return {
            "x": ball.project(mixed, center), "previous": x, "best": best,
            "best_gradient": best_gradient, "best_loss": best_loss,
            "last_loss": torch.where(first, 0.0, losses),
            "checked_loss": torch.where(due, best_loss, checked_loss),
            "size": size, "looks": s["looks"] + 1,
            "since": torch.where(due, 0.0, since), "rises": torch.where(due, 0.0, rises),
            "period": torch.where(due, (s["period"] - shorter).clamp_min(shortest), s["period"]),
            "halved": torch.where(due, halves.to(since.dtype), s["halved"]),
        }  # fmt: skip

    return Ascent(init, update)
