r"""Attacks: a pair of pure functions, where one starts, and what it then does.

    start(x, generator)   the random start point around x (B, …)
    perturb(loss)         the `Perturbation` that goes on from there, with ``center=x``

so that x̂ = perturb(loss)(params, start(x, generator), y, center=x). Start points are drawn outside
the update, from a counted generator; what is inside is pure and compiles. Every builder here takes
the ball first. Lengths are in units of the data; each step size has the default of its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from funcrobust.core.arguments import require_perturbation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.composed import Composed, Masked, require_straight
from funcrobust.core.balls.linf import Linf, linf
from funcrobust.core.balls.unconstrained import unconstrained
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import at_least_single, flat
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.auto_pgd import apgd
from funcrobust.core.perturbations.projected_gradient import Perturbation, fgsm, pgd
from funcrobust.core.perturbations.steps import share_of, step_length


class Attack(NamedTuple):
    """An attack, as training and evaluation take it. Write your own: any two such functions."""

    start: Callable[[Tensor, torch.Generator], Tensor]
    """``(x, generator) -> start``, both (B, …)."""
    perturb: Callable[[Loss], Perturbation]
    """Builds the perturbation that ascends a loss."""

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Raise: an attack is two functions, and this says how they are called."""
        raise FuncrobustError(
            "an Attack is a start and a perturbation: attack.perturb(loss)(params, "
            "attack.start(x, generator), y, center=x)"
        )


def perturbation_on(attack: Attack | Perturbation, loss: Loss) -> Perturbation:
    """Let an `Attack` ascend ``loss``; a `Perturbation` has its own loss, and stays as it is."""
    if isinstance(attack, Attack):
        return attack.perturb(loss)
    require_perturbation(attack)
    return attack


def rs_fgsm(ball: Ball, *, step_size: float | None = None) -> Attack:
    """Build FGSM from a random start: x̂ = Π(x + η + α·sign ∇ℓ(x + η)), η uniform in the ball.

    Wong et al. 2020 (arXiv:2001.03994), algorithm 3. α (``step_size``) defaults to 1.25·radius,
    their 10/255 for ε = 8/255.

    Without a step size, raises `FuncrobustError` for a ball with no finite radius to take it from
    and for one of `with_steps`.
    """
    alpha = step_length(step_size, ball, 1.25)
    return Attack(ball.sample, lambda loss: fgsm(loss, ball, step_size=alpha))


def n_fgsm(ball: Ball, *, step_size: float | None = None, noise: float = 2.0) -> Attack:
    """Build N-FGSM: x̂ = x + η + α·sign ∇ℓ(x + η), η uniform in ±k·ε, with no projection on ε.

    De Jorge et al. 2022 (arXiv:2202.01181), algorithm 1. ``ball`` is an `linf` one, whose radius is
    ε; ``noise`` is k, and α (``step_size``) defaults to ε, as in the paper. Only the ball's bounds
    clamp x̂. Raises `FuncrobustError` for another ball.
    """
    if type(ball) is not Linf:  # a smooth one steps otherwise
        raise FuncrobustError(f"N-FGSM is an L-infinity attack: give fr.linf(...), not {ball}")
    alpha = step_length(step_size, ball, 1.0)
    require_finite("noise", noise)
    everywhere = linf(math.inf, bounds=ball.bounds)
    return Attack(
        linf(noise * ball.radius, bounds=ball.bounds).sample,
        lambda loss: fgsm(loss, everywhere, step_size=alpha),
    )


def zerograd(ball: Ball, *, step_size: float | None = None, quantile: float = 0.35) -> Attack:
    """Build ZeroGrad: RS-FGSM that does not move where the gradient is small.

    In each example the ``quantile`` of entries smallest in |∇ℓ| is set to zero before the sign is
    taken (Golgooni et al. 2021, arXiv:2103.15476, section 4.1; their q is 0.35 for ε = 8/255). Of a
    `masked` ball it is the quantile within the mask.

    Raises `FuncrobustError` for a ``quantile`` outside [0, 1), a ball that steps otherwise than by
    adding a direction (`fourier`), and, without a step size, for a ball with no finite radius to
    take it from or one of `with_steps`.
    """
    largest = LargestOnly(ball, quantile)
    alpha = step_length(step_size, ball, 1.25)
    return Attack(ball.sample, lambda loss: fgsm(loss, largest, step_size=alpha))


def pgd_k(ball: Ball, *, step_size: float | None = None, steps: int = 10) -> Attack:
    """Build PGD from a random start in the ball (Madry et al. 2018, arXiv:1706.06083).

    ``step_size`` defaults to radius/4, their 2/255 for ε = 8/255; of fewer than ten steps to
    2.5·radius/steps, at most 1.25·radius, so that they can cross the ball.

    Without a step size, raises `FuncrobustError` for a ball with no finite radius to take it from
    and for one of `with_steps`.
    """
    alpha = step_length(step_size, ball, share_of(steps))
    return Attack(ball.sample, lambda loss: pgd(loss, ball, step_size=alpha, steps=steps))


def apgd_k(ball: Ball, *, step_size: float | None = None, steps: int = 10) -> Attack:
    """Build Auto-PGD from a random start in the ball (Croce & Hein 2020, arXiv:2003.01690).

    See `apgd`. The first of its steps, ``step_size``, defaults to 2·radius, theirs.

    Without a step size, raises `FuncrobustError` for a ball with no finite radius to take it from
    and for one of `with_steps`.
    """
    first = step_length(step_size, ball, 2.0)
    return Attack(ball.sample, lambda loss: apgd(loss, ball, step_size=first, steps=steps))


def from_images(attack: Attack) -> Attack:
    """Start ``attack`` at the images themselves: plain FGSM of RS-FGSM, say."""
    return attack._replace(start=at_the_images)


def at_the_images(x: Tensor, _: torch.Generator) -> Tensor:
    """Return x: the start of an attack that has none of its own."""
    return x


def fixed(x: Tensor) -> Perturbation:
    """Return the perturbation that ends at ``x`` whatever it is given: an x̂ known already."""

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        del params, start, y, center
        return x

    return perturb


@dataclass(frozen=True)
class LargestOnly(Composed):
    """A ball whose steepest direction is that of the largest gradient entries alone.

    ``quantile`` in [0, 1) of each example's entries, the smallest in absolute value, count as 0;
    of a `masked` ball's, those within the mask.
    """

    quantile: float

    def __post_init__(self) -> None:
        require_straight(self.ball)
        if not 0 <= self.quantile < 1:
            raise FuncrobustError(f"quantile must be in [0, 1), got {self.quantile}")

    def steepest(self, gradient: Tensor) -> Tensor:
        size = at_least_single(flat(self._sizes(gradient)))  # no quantiles of half precision
        if not len(size):
            return self.ball.steepest(gradient)
        large = size >= torch.nanquantile(size, self.quantile, dim=1, keepdim=True)
        return self.ball.steepest(torch.where(large.reshape(gradient.shape), gradient, 0.0))

    def _sizes(self, gradient: Tensor) -> Tensor:
        """|∇ℓ|; NaN, which no quantile counts, where a mask holds x."""
        size = gradient.abs()
        if not isinstance(self.ball, Masked):
            return size
        anywhere = Masked(unconstrained(bounds=None), self.ball.mask)
        return anywhere.project(size, torch.full_like(size, math.nan))
