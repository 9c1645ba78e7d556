"""The loss algebra: operators that take losses (and perturbations) and give losses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from funcrobust.errors import FuncrobustError, require_finite
from funcrobust.functional import Params
from funcrobust.losses import Distance, Loss, squared_l2
from funcrobust.perturbations import Perturbation, constant

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


def drift(psi: Perturbation, *, distance: Distance = squared_l2) -> Loss:
    """‖x − ψ(x; θ)‖² per example (the ψ document's loss), differentiable through ψ.

    ``distance`` swaps the squared L2 norm for another ``(a, b) -> (B,)``.
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return distance(x, psi(params, x, y))

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
