r"""Training attacks, each a pair of pure functions: where it starts, and what it then does.

    start(x, generator)   the random start point around the images x (B, C, H, W)
    perturb(loss)         the `Perturbation` that goes on from there, with ``center=x``

so that x̂ = perturb(loss)(params, start(x, generator), y, center=x). Start points are drawn outside
the update, from a counted generator; what is inside is pure and compiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball, Bounds
from funcrobust.core.balls.linf import linf
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.losses import Loss
from funcrobust.core.perturbations.projected_gradient import Perturbation, fgsm, pgd


class Attack(NamedTuple):
    """A training attack; see this module. Write your own: any two such functions will do."""

    start: Callable[[Tensor, torch.Generator], Tensor]
    perturb: Callable[[Loss], Perturbation]


def rs_fgsm(ball: Ball, *, step_size: float) -> Attack:
    """Build FGSM from a random start: x̂ = Π(x + η + α·sign ∇ℓ(x + η)), η uniform in the ball.

    Wong et al. 2020 (arXiv:2001.03994), algorithm 3; α = 10/255 for ε = 8/255.
    """
    return Attack(ball.sample, lambda loss: fgsm(loss, ball, step_size=step_size))


def n_fgsm(
    radius: float, *, step_size: float | None = None, noise: float = 2.0, bounds: Bounds = (0, 1)
) -> Attack:
    """Build N-FGSM: x̂ = x + η + α·sign ∇ℓ(x + η), η uniform in ±k·ε, with no projection on ε.

    De Jorge et al. 2022 (arXiv:2202.01181), algorithm 1. ``radius`` is ε, ``noise`` is k, and α
    (``step_size``) defaults to ε, as in the paper. Only the data's ``bounds`` clamp x̂.
    """
    alpha = radius if step_size is None else step_size
    require_finite("noise", noise)
    everywhere = linf(math.inf, bounds=bounds)
    return Attack(
        linf(noise * radius, bounds=bounds).sample,
        lambda loss: fgsm(loss, everywhere, step_size=alpha),
    )


def zerograd(ball: Ball, *, step_size: float, quantile: float = 0.35) -> Attack:
    """Build ZeroGrad: RS-FGSM that does not move where the gradient is small.

    In each image the ``quantile`` of entries smallest in |∇ℓ| is set to zero before the sign is
    taken (Golgooni et al. 2021, arXiv:2103.15476, section 4.1; their q is 0.35 for ε = 8/255).
    """
    largest = LargestOnly(ball, quantile)
    return Attack(ball.sample, lambda loss: fgsm(loss, largest, step_size=step_size))


def pgd_k(ball: Ball, *, step_size: float, steps: int) -> Attack:
    """Build PGD from a random start in the ball (Madry et al. 2018, arXiv:1706.06083)."""
    return Attack(ball.sample, lambda loss: pgd(loss, ball, step_size=step_size, steps=steps))


def from_images(attack: Attack) -> Attack:
    """Start ``attack`` at the images themselves: plain FGSM of RS-FGSM, say."""
    return attack._replace(start=lambda x, _: x)


@dataclass(frozen=True)
class LargestOnly:
    """A ball whose steepest direction is that of the largest gradient entries alone.

    ``quantile`` in [0, 1) of each example's entries, the smallest in absolute value, count as 0.
    """

    ball: Ball
    quantile: float
    differentiable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise FuncrobustError(f"quantile must be in [0, 1), got {self.quantile}")

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return self.ball.project(x, center)

    def steepest(self, gradient: Tensor) -> Tensor:
        size = gradient.abs().flatten(1)
        size = size.float() if size.dtype.itemsize < 4 else size  # no quantiles of half precision
        large = size >= torch.quantile(size, self.quantile, dim=1, keepdim=True)
        return self.ball.steepest(torch.where(large.reshape(gradient.shape), gradient, 0.0))

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.ball.sample(center, generator)
