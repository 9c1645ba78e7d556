r"""Ascents: how a point climbs a loss, as a pair of pure functions, as an optax optimizer is one.

    state_0 = init(x_0)
    state_{t+1} = update(state_t, ℓ(x_t), ∇ₓℓ(x_t), c),    x_t = state_t["x"]

A state is a dict of tensors (B, …), each row an example's own: rows may be at different steps, be
taken out of a batch and replaced by others. No network is in it, so that whoever holds one decides
how losses and gradients come about: `climb` by ``torch.func``, an evaluation beside the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.func import grad

from funcrobust.core.balls.ball import Ball
from funcrobust.core.losses import Loss, per_example_loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.steps import advance

AscentState = dict[str, Tensor]
"""Tensors (B, …) by name; ``x`` is where the loss is looked at next."""


class Ascent(NamedTuple):
    """A way to climb: see the head of this file."""

    init: Callable[[Tensor], AscentState]
    """``start -> state``."""
    update: Callable[[AscentState, Tensor, Tensor, Tensor], AscentState]
    """``(state, losses (B,), gradients (B, …), center) -> state``."""


def steepest_ascent(ball: Ball, *, step_size: float) -> Ascent:
    """Build the ascent of PGD: x ← Π(x + α·steepest(∇ₓℓ))."""

    def update(
        state: AscentState, _losses: Tensor, gradient: Tensor, center: Tensor
    ) -> AscentState:
        return {"x": advance(ball, state["x"], gradient, step_size, center)}

    return Ascent(lambda start: {"x": start}, update)


def climb(
    loss: Loss, ascent: Ascent, looks: int, params: Params, start: Tensor, y: Tensor, center: Tensor
) -> AscentState:
    """Update ``looks`` times on the loss and its gradient; return the last state."""

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        losses = per_example_loss(loss(params, x, y), x)
        return losses.sum(), losses

    state = ascent.init(start)
    for _ in range(looks):
        gradient, losses = grad(total, has_aux=True)(state["x"])
        state = ascent.update(state, losses, gradient, center)
    return state
