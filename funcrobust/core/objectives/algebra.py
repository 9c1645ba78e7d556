"""The loss algebra: operators that take losses (and perturbations) and give losses."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.losses import Distance, Loss, kl, kl_divergence, squared_l2
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.projected_gradient import Perturbation, PerturbationOf, constant

Objective = Callable[[Params, Tensor, Tensor], Tensor]
"""``(params, x, y) -> ()``: what an update differentiates."""


def adversarial(loss: Loss, attack: Perturbation, *, start: Tensor | None = None) -> Loss:
    """ℓ(θ, x + δ, y), δ = attack(θ, x, y) − x held constant (Madry et al. 2018, eq. 2.1; Danskin).

    The derivative in x passes through x + δ, so that operators nest (CURE of an adversarial loss,
    say). ``start`` (x's shape) begins the attack elsewhere than at x, for example
    ``ball.sample(x, generator)``; the ball stays centred on x.
    """

    def robust(params: Params, x: Tensor, y: Tensor) -> Tensor:
        center = x.detach()
        begin = center if start is None else start.detach()
        perturbed = attack(constant(params), begin, y, center=center)
        return loss(params, x + (perturbed - x).detach(), y)

    return robust


def trades(
    predict: Predict, attack: PerturbationOf, *, beta: float = 6.0, start: Tensor | None = None
) -> Loss:
    """ℓ(θ, x, y) + β·KL(p(x) ‖ p(x̂)), ℓ the cross-entropy: TRADES.

    x̂ ascends the same KL from p(x) held constant; ``attack`` builds that search on a loss. The KL
    has no slope at x, so ``start`` (x's shape) should lie beside it, x + 0.001·normal in the
    published code. Both p(x) and p(x̂) depend on θ, x̂ does not. Zhang et al. 2019
    (arXiv:1901.08573), equation 5; β = 1/λ there, 6 in their CIFAR-10 runs.
    """
    require_finite("beta", beta)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        center = x.detach()
        held = constant(params)
        search = attack(kl_divergence(predict, predict(held, center).detach()))
        begin = center if start is None else start.detach()
        delta = (search(held, begin, y, center=center) - center).detach()
        logits = predict(params, x)
        natural = F.cross_entropy(logits, y, reduction="none")
        return natural + beta * kl(logits, predict(params, x + delta))

    return loss


def helper(
    loss: Loss, *, toward: Tensor, labels: Callable[[Tensor], Tensor], extrapolate: float = 2.0
) -> Loss:
    """ℓ(θ, x + k·(x̂ − x), ŷ): the helper examples of HAT, beyond the adversarial ones.

    ``toward`` is x̂, and ``labels`` gives ŷ (B,) of images: the decision of a standard network on
    x̂. Learning that what is farther along than x̂ may be called otherwise keeps the margin from
    growing needlessly, which costs clean accuracy. Rade & Moosavi-Dezfooli 2022 (ICLR, "Reducing
    excessive margin to achieve a better accuracy vs. robustness trade-off"), with
    ``extrapolate`` k = 2. The helper images are not clamped to the data bounds, as there.
    """
    require_finite("extrapolate", extrapolate)

    def helped(params: Params, x: Tensor, _y: Tensor) -> Tensor:
        delta = (toward - x).detach()
        return loss(params, x + extrapolate * delta, labels(toward).detach())

    return helped


def drift(
    psi: Perturbation, *, distance: Distance = squared_l2, toward: Tensor | None = None
) -> Loss:
    """‖x − ψ(x; θ)‖² per example (the ψ document's loss), differentiable through ψ.

    ``distance`` swaps the squared L2 norm for another ``(a, b) -> (B,)``. With ``toward`` (B, C, H,
    W) it is ‖toward − ψ(x; θ)‖²: what is left to do for a ψ that is to restore these from x.
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return distance(x if toward is None else toward, psi(params, x, y))

    return loss


def weighted_sum(*terms: tuple[float, Loss]) -> Loss:
    """Σ wᵢ ℓᵢ. Weights must be finite and ≥ 0; terms of weight 0 are not evaluated.

    >>> total = weighted_sum((1.0, robust), (10.0, cure(loss, h=3.0)))  # doctest: +SKIP
    """
    for weight, _ in terms:
        require_finite("a term's weight", weight)
    active = [(weight, loss) for weight, loss in terms if weight != 0.0]
    if not active:
        raise FuncrobustError("a weighted sum needs at least one term of positive weight")

    def total(params: Params, x: Tensor, y: Tensor) -> Tensor:
        first, *others = (weight * loss(params, x, y) for weight, loss in active)
        if any(other.shape != first.shape for other in others):
            raise FuncrobustError("every term of a weighted sum must be per example, of shape (B,)")
        return sum(others, first)

    return total


def mean(loss: Loss) -> Objective:
    """Average a loss over the batch: the scalar that ``torch.func.grad`` wants."""

    def objective(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(params, x, y).mean()

    return objective
