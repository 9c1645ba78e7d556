"""Adversarial training with CURE and its relatives, as an objective: each formula on one screen.

A training objective is ``(params, buffers, *batch) -> (scalar, (buffers, metrics))``; it is what
`make_update` differentiates. Training-mode batch norm appears here alone:
regularisers see a `Predict` bound to the running statistics unless they ask for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.losses import Loss, cross_entropy, kl, kl_divergence
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.core.perturbations.projected_gradient import PerturbationOf, constant
from funcrobust.core.regularisers.cure import cure
from funcrobust.core.training.updates import Metrics, TrainingObjective


class Views(NamedTuple):
    """What a regulariser of a training batch is built from."""

    evaluating: Predict
    """What regularisers of the network at x take: by the ``statistics`` of `robust_training`."""
    training: Predict
    """Training mode: batch norm by the batch's own statistics, which here move no buffer."""
    perturbed: Tensor
    """x̂, constant."""
    noise: Tensor | None
    """Uniform in [−1, 1], (k, B, C, H, W): as many independent draws as were given."""
    growth: Tensor | float
    """The share of its full strength that a schedule has reached, a factor of CURE's h."""


STATISTICS = ("batch", "held", "running")

Term = Callable[[Views], Loss]
"""Builds one regulariser, for example ``lambda v: fr.cure(fr.cross_entropy(v.evaluating), 0.75)``.
"""


def robust_training(
    model: Functional,
    attack: PerturbationOf | None,
    *,
    terms: Mapping[str, tuple[float, Term]] | None = None,
    trades: float | None = None,
    fraction: float = 1.0,
    label_smoothing: float = 0.0,
    batch_statistics: bool = False,
    statistics: str = "batch",
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """Adversarial training plus regularisers:

        x̂ = attack(θ, start, y; centre x)                         held constant
        L(θ) = mean ℓ(θ, x̂, y) + Σ_name weight · mean term(θ, x, y)

    The batch is ``(x, y, start)``, images (B, C, H, W), then ``noise`` and ``growth`` of `Views`
    for the terms that use them. ``attack=None`` trains on x itself. With ``trades`` β the first
    term is mean ℓ(θ, x, y) + β·KL(p(x) ‖ p(x̂)) instead, and the attack ascends that KL.
    ``fraction`` of the batch carries the terms: in a shuffled batch an unbiased estimate, at that
    fraction of the cost. ``dtype`` is autocast's. ``label_smoothing`` is the first term's alone.

    Batch norm: the first term is in training mode. ``batch_statistics`` lets the attack see the
    batch's own statistics instead of the running ones. ``statistics`` are the regularisers':

    - ``"batch"``: those of the regulariser's own batch, differentiated like everything else: the
      network that is trained, with the whole derivative;
    - ``"held"``: those of the first term's batch, held constant: half the cost, but the derivative
      leaves out what normalisation undoes, and training can fail on it;
    - ``"running"``: as in the CURE document's code, with the same half derivative. The regulariser
      can then be satisfied by a network that exists in evaluation mode alone: parameters move so
      that the lagging statistics fit them badly and damp them.

    docs/recipes.md has the runs behind this.

    Raises `FuncrobustError` for negative or non-finite weights, ``fraction`` outside (0, 1], or
    ``trades`` without an attack.
    """
    active = {k: (w, term) for k, (w, term) in (terms or {}).items() if require_finite(k, w) > 0}
    if statistics not in STATISTICS:
        raise FuncrobustError(f"statistics must be one of {', '.join(STATISTICS)}")
    require_fraction(fraction)
    if trades is not None:
        require_finite("trades", trades)
    if trades is not None and attack is None:
        raise FuncrobustError("TRADES needs an attack: its second term compares x with x̂")

    def objective(
        params: Params,
        buffers: Buffers,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        noise: Tensor | None = None,
        growth: Tensor | float = 1.0,
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        running = autocast(model.with_buffers(buffers), dtype)
        training = autocast(model.by_batch(buffers), dtype)
        attacked = _attacked(model, buffers, dtype) if batch_statistics else running
        if noise is not None and len(noise) and noise.shape[1:] != x.shape:
            raise FuncrobustError(f"noise must be (k, B, C, H, W), got {tuple(noise.shape)}")
        perturbed = x
        if attack is not None:
            ascended = cross_entropy(attacked)
            if trades is not None:
                ascended = kl_divergence(attacked, attacked(constant(params), x).detach())
            perturbed = attack(ascended)(constant(params), start, y, center=x).detach()
        total, logits, before, after = _first_term(
            model, params, buffers, x, y, perturbed, trades, label_smoothing, dtype
        )
        metrics = {"loss": total, "accuracy": _accuracy(logits, y)}
        evaluating = training if statistics == "batch" else running
        if statistics == "held":
            held = model.batch_statistics(before, after)
            evaluating = autocast(model.with_buffers(held), dtype)
        n = max(1, round(fraction * len(x)))
        cut = None if noise is None else noise[:, :n]
        views = Views(evaluating, training, perturbed[:n], cut, growth)
        for name, (weight, term) in active.items():
            metrics[name] = term(views)(params, x[:n], y[:n]).mean()
            total = total + weight * metrics[name]
        return total, (after, {name: m.detach() for name, m in metrics.items()})

    return objective


def cure_training(
    model: Functional,
    attack: PerturbationOf | None,
    *,
    lam: float,
    h: float,
    direction: str = "classic",
    backward: str = "shared",
    **options: Any,
) -> TrainingObjective:
    """Adversarial training plus CURE (the CURE document):

        x̂ = attack(θ, start, y; centre x)                         held constant
        L(θ) = mean ℓ(θ, x̂, y) + λ · mean ‖∇ₓℓ(θ, x + z, y) − ∇ₓℓ(θ, x, y)‖₂

    ``direction`` and ``backward`` are those of `cure`, the other options those of
    `robust_training`. Raises `FuncrobustError` for λ or h negative or not finite.
    """
    require_finite("h", h)
    require_finite("lam", lam)
    terms = {} if direction == "none" else {"curvature": (lam, cure_term(h, direction, backward))}
    return robust_training(model, attack, terms=terms | options.pop("terms", {}), **options)


def cure_term(h: float, direction: str = "classic", backward: str = "shared") -> Term:
    """CURE of the cross-entropy of ``views.evaluating``, as a term of `robust_training`."""

    def term(views: Views) -> Loss:
        toward = None
        if direction in ("fgsm", "linf"):
            toward = views.perturbed
        elif direction == "random":
            if views.noise is None or len(views.noise) == 0:
                raise FuncrobustError("CURE's random direction needs noise in the batch")
            toward = views.noise[0]
        return cure(
            cross_entropy(views.evaluating), h * views.growth, direction=direction, toward=toward,
            backward=backward,
        )  # fmt: skip

    return term


def _first_term(
    model: Functional,
    params: Params,
    buffers: Buffers,
    x: Tensor,
    y: Tensor,
    perturbed: Tensor,
    trades: float | None,
    label_smoothing: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Buffers, Buffers]:
    """ℓ at x̂, or TRADES; in training mode.

    Also the logits at x̂, and the buffers before and after x̂ went through.
    """

    def predict(buffers: Buffers, images: Tensor) -> tuple[Tensor, Buffers]:
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            logits, after = model.predict_train(params, buffers, images)
        return logits.to(x.dtype), after

    def smoothed(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing)

    if trades is not None:
        natural, buffers = predict(buffers, x)
    logits, after = predict(buffers, perturbed)
    if trades is None:
        return smoothed(logits), logits, buffers, after
    return smoothed(natural) + trades * kl(natural, logits).mean(), logits, buffers, after


def require_fraction(fraction: float) -> None:
    """Raise unless ``fraction`` is in (0, 1]."""
    if not 0 < fraction <= 1:
        raise FuncrobustError(f"fraction must be in (0, 1], got {fraction}")


def _attacked(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    """`Functional.by_batch` on torch's own batch norm: the faster one for a first derivative."""
    return autocast(lambda params, x: model.predict_train(params, buffers, x)[0], dtype)


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).float().mean()
