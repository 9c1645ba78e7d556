r"""A gradient step that carries more than the image: momentum, and the best image so far.

    v ← μ·v + ∇ₓℓ/‖∇ₓℓ‖₁                        (v = ∇ₓℓ at μ = 0)
    b ← x_t   where ±ℓ(x_t) exceeds ±ℓ(b)
    x ← Π_{B(c)}( x_t ± α·steepest_B(v) )

v is the velocity of the momentum iterative method (Dong et al. 2018, arXiv:1710.06081, equations 6
and 7); b is ``robustness``'s ``use_best``. Both ride along as further channels of the image, so
that every way of differentiating an iteration applies as it is, at the memory of three images
more. Which image is best is held constant: the derivative is that of the image returned.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from funcrobust.core.balls.ball import Ball
from funcrobust.core.derivatives.iteration import Step
from funcrobust.core.examples import flat, largest_to_one, per_example
from funcrobust.core.losses import Loss, per_example_loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.steps import advance


def carry(start: Tensor) -> Tensor:
    """Return the first state (x, v, b, ±ℓ(b)) of (B, C, …), (B, 3C + 1, …); v is 0."""
    least = torch.full_like(start[:, :1], -torch.inf)
    return torch.cat([start, torch.zeros_like(start), start, least], dim=1)


def carrying_step(loss: Loss, ball: Ball, *, size: float, momentum: float, sign: float) -> Step:
    """Build one step on states; ``size`` is signed, ``sign`` is −1 to descend the loss."""

    def total(x: Tensor, params: Params, y: Tensor) -> tuple[Tensor, Tensor]:
        losses = per_example_loss(loss(params, x, y), x)
        return losses.sum(), losses

    gradient = grad(total, has_aux=True)

    def step(params: Params, state: Tensor, y: Tensor, center: Tensor) -> Tensor:
        c = center.shape[1]
        x, v = state[:, :c], state[:, c : 2 * c]
        g, losses = gradient(x, params, y)
        v = momentum * v + _l1_normalised(g) if momentum else g
        x_next = advance(ball, x, v, size, center)
        return torch.cat([x_next, v, *_better(state, sign * losses, c)], dim=1)

    return step


def last(state: Tensor, channels: int) -> Tensor:
    """Return x of a state."""
    return state[:, :channels]


def best(loss: Loss, params: Params, state: Tensor, y: Tensor, c: int, sign: float) -> Tensor:
    """Return b of a state, after a look at its x, which no step has judged yet."""
    return _better(state, sign * loss(params, state[:, :c], y), c)[0]


def _better(state: Tensor, value: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """(b, ±ℓ(b)), with x in place of b where its ``value`` (B,) is larger."""
    x, b, least = state[:, :c], state[:, 2 * c : 3 * c], state[:, 3 * c :]
    found = per_example(value.detach(), x).expand_as(least).to(least.dtype)
    better = found > least
    return torch.where(better, x, b), torch.where(better, found, least)


def _l1_normalised(g: Tensor) -> Tensor:
    scaled = largest_to_one(g)  # whose derivative is finite, however small g is
    return scaled / per_example(flat(scaled.abs()).sum(1), g).clamp_min(0.5)
