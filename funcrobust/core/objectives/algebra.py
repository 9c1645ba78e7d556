"""The loss algebra: operators that take losses (and perturbations) and give losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from funcrobust.core.arguments import require_loss, require_perturbation, require_predict
from funcrobust.core.attacks import Attack, at_the_images, perturbation_on
from funcrobust.core.derivatives.iteration import constant
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import flat
from funcrobust.core.losses import (
    Distance,
    Loss,
    cross_entropy,
    kl,
    kl_divergence,
    per_example_loss,
    squared_l2,
)
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.projected_gradient import Perturbation

Objective = Callable[[Params, Tensor, Tensor], Tensor]
"""``(params, x, y) -> ()``: a scalar to differentiate."""


def adversarial(loss: Loss, attack: Attack | Perturbation, *, start: Tensor | None = None) -> Loss:
    """ℓ(θ, x + δ, y), δ = attack(θ, x, y) − x held constant (Madry et al. 2018, eq. 2.1; Danskin).

    An `Attack` ascends ``loss`` itself; a `Perturbation` has its own. The derivative in x passes
    through x + δ, so that operators nest (CURE of an adversarial loss, say). ``start`` (x's shape)
    begins the attack elsewhere than at x; the ball stays centred on x. An `Attack`'s own is drawn
    outside, ``attack.start(x, generator)``: without it RS-FGSM is FGSM from x, and a warning says
    so.
    """
    require_loss(loss)
    _warn_of_no_start(attack, start)
    perturb = perturbation_on(attack, loss)

    def robust(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(params, _perturbed(perturb, params, x, y, start), y)

    return robust


def _warn_of_no_start(attack: Attack | Perturbation, start: Tensor | None) -> None:
    if start is not None or not isinstance(attack, Attack) or attack.start is at_the_images:
        return
    if not torch.compiler.is_compiling():
        warnings.warn(
            "this attack has a start of its own, and none was given: it begins at x. Pass "
            "start=attack.start(x, generator), or start=x to say so",
            stacklevel=3,
        )


def _perturbed(
    perturb: Perturbation, params: Params, x: Tensor, y: Tensor, start: Tensor | None
) -> Tensor:
    """x̂ to the bit, constant in θ, with the derivative of x + δ in x."""
    center = x.detach()
    begin = center if start is None else start.detach()
    found = perturb(constant(params), begin, y, center=center).detach()
    return found + (x - center)


def trades(
    predict: Predict,
    attack: Attack | Perturbation,
    *,
    beta: float = 6.0,
    start: Tensor | None = None,
    natural: Callable[[Predict], Loss] = cross_entropy,
) -> Loss:
    """ℓ(θ, x, y) + β·KL(p(x) ‖ p(x̂)): TRADES.

    x̂ ascends the same KL from p(x) held constant: an `Attack` is built on it. The KL has no slope
    at x, so ``start`` (x's shape) should lie beside it, x + 0.001·normal in the published code.
    Both p(x) and p(x̂) depend on θ, x̂ does not; in x the derivative takes x̂ for a constant way
    from x, as `adversarial` does. ``natural`` builds ℓ on a `Predict`: a
    `cross_entropy` with label smoothing, say. Zhang et al. 2019 (arXiv:1901.08573), equation 5;
    β = 1/λ there, 6 in their CIFAR-10 runs.
    """
    require_predict(predict)
    require_perturbation(attack)
    require_finite("beta", beta)
    _warn_of_no_start(attack, start)

    def search(params: Params, x: Tensor) -> Perturbation:
        if not isinstance(attack, Attack):
            return attack
        held = predict(constant(params), x.detach()).detach()
        return attack.perturb(kl_divergence(predict, held))

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        x_hat = _perturbed(search(params, x), params, x, y, start)
        logits = predict(params, x)
        fit = natural(lambda _params, _x: logits)  # p(x) is in both terms: looked at once
        return fit(params, x, y) + beta * kl(logits, predict(params, x_hat))

    return loss


def helper_examples(
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

    ``distance`` swaps the squared L2 norm for another ``(a, b) -> (B,)``. With ``toward`` (x's
    shape) it is ‖toward − ψ(x; θ)‖²: what is left to do for a ψ that is to restore these from x.
    """
    require_perturbation(psi)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return distance(x if toward is None else toward, psi(params, x, y))

    return loss


def restoration(psi: Perturbation, start: Tensor, *, power: float = 1.0) -> Loss:
    """‖x − ψ(s; θ)‖² / (d·ρᵖ) per example, ρ = ‖s − x‖/√d: how well ψ restores x from s.

    The drift of the ψ document with ψ started at a degraded image: ``start`` s has x's shape (see
    `gaussian_noise`, `mixed_with`), d is the count of an image's numbers. Where the drift at x says
    only "stay", this says where to go, and the drift is its limit as s nears x. For ψ one step
    s − a·∇ₓℓ (`unconstrained`) on s = x + σn it is denoising score matching (Vincent 2011): at its
    least −a·∇ₓℓ = σ²·∇ log p_σ(s | y), p_σ the density of noisy images. Blind, since ψ is not told
    σ: one −ℓ serves all.

    ``power`` p weighs the amounts of degradation: the error itself at p = 0, that relative to
    the degradation's (the weight of maximum likelihood's bound) at p = 2; 1 lies between.
    ρ counts as 0.01 at least.
    """
    require_perturbation(psi)
    require_finite("power", power)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        error = flat(x - psi(params, start, y)).square().mean(1)
        rho = flat(start - x).square().mean(1).clamp_min(1e-4).sqrt()
        return error / rho**power

    return loss


def through(psi: Perturbation, loss: Loss) -> Loss:
    """ℓ(θ, ψ(x; θ), y): a loss of where ψ ends, with the derivative through ψ."""

    def composed(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(params, psi(params, x, y), y)

    return composed


def at(loss: Loss, x: Tensor, y: Tensor) -> Loss:
    """ℓ(θ, x, y) at these x and y, whatever it is given: another start, or a part of the batch.

    As a term of `training_objective`, whose terms are averaged one by one, x may have fewer
    examples than the batch; in `weighted_sum`, `mean` and `objective` as many as what is given.
    """
    return lambda params, _x, _y: loss(params, x, y)


def weighted_sum(*terms: tuple[float, Loss]) -> Loss:
    """Σ wᵢ ℓᵢ. Weights must be finite and ≥ 0; terms of weight 0 are not evaluated.

    >>> model = fr.functionalize(nn.Linear(4, 3))
    >>> loss = fr.cross_entropy(model.predict)
    >>> total = fr.weighted_sum((1.0, loss), (0.3, fr.cure(loss, h=0.75)))
    >>> total(model.params, torch.zeros(2, 4), torch.tensor([0, 2])).shape
    torch.Size([2])
    """
    for term in terms:
        if not isinstance(term, tuple | list) or len(term) != 2:
            raise FuncrobustError(
                "each term is a pair, fr.weighted_sum((1.0, loss), (0.3, another)), not a "
                f"{type(term).__name__}"
            )
        if isinstance(term[0], int | float) and term[0] < 0:
            raise FuncrobustError(
                f"a term's weight is a number >= 0, got {term[0]}: to subtract a loss hand in its "
                "negative, lambda params, x, y: -loss(params, x, y)"
            )
        require_finite("a term's weight", term[0])
        if term[0]:
            require_loss(term[1])
    active = [(weight, loss) for weight, loss in terms if weight != 0.0]
    if not active:
        raise FuncrobustError("a weighted sum needs at least one term of positive weight")

    def total(params: Params, x: Tensor, y: Tensor) -> Tensor:
        first, *others = (
            weight * per_example_loss(loss(params, x, y), x) for weight, loss in active
        )
        return sum(others, first)

    return total


def mean(loss: Loss) -> Objective:
    """Average a loss over the batch: the scalar that ``torch.func.grad`` wants."""
    require_loss(loss)

    def objective(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return per_example_loss(loss(params, x, y), x).mean()

    return objective
