r"""Regularisers that keep the loss close to linear around the images.

CURE's relatives: each is a `Loss`, so add λ times it to an objective. A robust network's loss is
nearly linear in the ε-ball; where single-step training collapses, it is not (catastrophic
overfitting). Random points are arguments, drawn outside from a counted generator.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from funcrobust.core.attacks import Attack, perturbation_on
from funcrobust.core.derivatives.iteration import constant
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import flat, inner, per_example, squared_norm, unit
from funcrobust.core.losses import Loss, per_example_loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.projected_gradient import Perturbation, input_gradient


def input_gradient_norm(loss: Loss) -> Loss:
    """Build ‖∇ₓℓ(θ, x, y)‖₂² per example: double backpropagation.

    Drucker & LeCun 1992; for robustness Ross & Doshi-Velez 2018 (arXiv:1711.09404).
    """
    g = input_gradient(loss)

    def penalty(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return squared_norm(g(params, x, y))

    return penalty


GradAlignForm = Literal["paper", "code"]


def gradient_alignment(loss: Loss, *, toward: Tensor, form: GradAlignForm = "paper") -> Loss:
    """Build GradAlign, 1 − cos(∇ₓℓ(x), ∇ₓℓ(x + η)), in [0, 2].

    ``toward`` is x + η, with η uniform in the ε-ball: ``ball.sample(x, generator)``.
    Andriushchenko & Flammarion 2020 (arXiv:2007.02617). In the ``"paper"`` form (their equation)
    both gradients depend on θ. The ``"code"`` form is that of FGSM training in the code published
    with it: ∇ₓℓ(x) is held constant, and the mean is over the examples neither of whose gradients
    is 0 (its x + η is not clamped to the data bounds: give ``toward`` so; and its x is where FGSM
    starts, x itself by ``--attack_init zero`` alone).
    """
    if form not in get_args(GradAlignForm):
        raise FuncrobustError(f'form must be "paper" or "code", got {form!r}')
    g = input_gradient(loss)

    def penalty(params: Params, x: Tensor, y: Tensor) -> Tensor:
        here, there = flat(g(params, x, y)), flat(g(params, toward, y))
        if form == "code":
            here = here.detach()
        # The gradients of a confident network are tiny: torch's cosine_similarity would call them
        # orthogonal, by its floor on the norms or because their squares underflow.
        apart = 1.0 - inner(unit(here), unit(there))
        if form == "paper":
            return apart
        counted = (here.abs().sum(1) > 0) & (there.detach().abs().sum(1) > 0)
        # Weighted so that the mean over the batch is the mean over those counted.
        return torch.where(counted, apart, 0.0) * (len(x) / counted.to(apart).sum().clamp_min(1))

    return penalty


def linearity_error(loss: Loss, params: Params, center: Tensor, y: Tensor) -> Loss:
    """Build ``(params, x, y) -> |ℓ(x) − ℓ(c) − (x − c)·∇ℓ(c)|``, c the ``center``.

    How far the loss is from its tangent plane at c, which ``params`` and ``y`` fix once. Qin et
    al. 2019 (arXiv:1907.02610).
    """
    value, slope = loss(params, center, y), input_gradient(loss)(params, center, y)

    def error(params: Params, x: Tensor, y: Tensor) -> Tensor:
        rise = inner(x - center, slope)
        return (loss(params, x, y) - value - rise).abs()

    return error


def local_linearity(
    loss: Loss, attack: Attack | Perturbation, *, start: Tensor, mu: float = 0.75
) -> Loss:
    """Build the local linearity regulariser (LLR), γ(x) + μ·|δ·∇ℓ(x)|.

        γ(x) = max_{δ in the ball} |ℓ(x + δ) − ℓ(x) − δ·∇ℓ(x)|

    ``attack`` searches for δ (`pgd_k`, a few steps; a `Perturbation` climbs its own loss); it
    begins at ``start`` (x's shape), since the error's derivative is zero at x itself. δ is held
    constant, the tangent is not. Qin et al. 2019 (arXiv:1907.02610), whose λ γ + μ |δ·∇ℓ| has λ =
    4, μ = 3: here λ multiplies both terms.
    """
    require_finite("mu", mu)
    g = input_gradient(loss)

    def penalty(params: Params, x: Tensor, y: Tensor) -> Tensor:
        held, center = constant(params), x.detach()
        search = perturbation_on(attack, linearity_error(loss, held, center, y))
        delta = (search(held, start.detach(), y, center=center) - center).detach()
        rise = inner(delta, g(params, x, y))
        error = (loss(params, x + delta, y) - loss(params, x, y) - rise).abs()
        return error + mu * rise.abs()

    return penalty


def elle(loss: Loss, *, ends: tuple[Tensor, Tensor], mix: Tensor) -> Loss:
    """Build ELLE, (ℓ(x_c) − (1 − α)·ℓ(x_a) − α·ℓ(x_b))², x_c = (1 − α)·x_a + α·x_b.

    ``ends`` are x_a and x_b, two random points of the ε-ball around x, and ``mix`` (B,) is α,
    uniform in [0, 1]. It needs no input gradient: one forward pass over three batches. Abad
    Rocamora et al. 2024 (arXiv:2401.11618). x itself is used for its place alone.
    """
    a, b = ends

    def penalty(params: Params, x: Tensor, y: Tensor) -> Tensor:
        alpha = mix.to(x.dtype)
        wide = per_example(alpha, x)
        points = torch.cat([a, b, (1 - wide) * a + wide * b])
        values = per_example_loss(loss(params, points, torch.cat([y, y, y])), points)
        at_a, at_b, at_c = values.chunk(3)
        return (at_c - (1 - alpha) * at_a - alpha * at_b).square()

    return penalty
