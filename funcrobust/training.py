"""The two methods as training objectives: each formula on one screen.

A training objective is ``(params, buffers, *batch) -> (scalar, (buffers, metrics))``; it is what
`funcrobust.updates.make_update` differentiates. Training-mode batch norm appears here alone:
regularisers see a `Predict` bound to the running statistics unless they ask for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.adjoint import Step
from funcrobust.balls import per_example
from funcrobust.curvature import cure
from funcrobust.errors import FuncrobustError, require_finite
from funcrobust.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.losses import (
    Distance,
    Loss,
    cross_entropy,
    entropy,
    kl,
    kl_divergence,
    squared_l2,
)
from funcrobust.perturbations import Perturbation, PerturbationOf, constant
from funcrobust.updates import Metrics, TrainingObjective


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
    _require_fraction(fraction)
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


def psi_training(
    model: Functional,
    psi: Callable[[Predict], Perturbation],
    *,
    distance: Distance = squared_l2,
    anchor: Callable[[Predict], Loss] = cross_entropy,
    weight: float,
    entropy_weight: float = 0.0,
    drift_weight: float = 1.0,
    fraction: float = 1.0,
    approach: Callable[[Predict], Step] | None = None,
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """ψ-training with an anchor:

        L(θ) = δ · mean ‖x − ψ(s; θ)‖² + μ · mean a(θ, x, y) + η · mean H(p(θ, ψ(s; θ)))

    ``psi`` and ``anchor`` are built on a `Predict`; ``distance`` swaps the squared norm; μ is
    ``weight``, η ``entropy_weight`` and δ ``drift_weight``, and 0, 0, 1 are the ψ document's loss
    alone. (δ = 0 is the control: all else, without ψ.) The batch is
    ``(x, label, y)``, then the start s, which is x unless given: ψ moves s toward (or from)
    ``label``; y is the true one of x. With s a degraded x, ψ is trained to restore. ``fraction`` of
    the batch, its first part, carries ψ, whose derivative costs many times the anchor's.

    With ``approach``, a `Step` built on a `Predict`, the batch ends in integers ``stops`` (B,), and
    x in the first term is an image that the network made itself: s after so many steps, held
    constant. ψ is then trained to stay where it has arrived.

    The network is in evaluation mode, so that its statistics cannot move: in the published code
    they alone did.

    Raises `FuncrobustError` for weights negative or not finite, or ``fraction`` outside (0, 1].
    """
    require_finite("weight", weight)
    require_finite("entropy_weight", entropy_weight)
    if require_finite("drift_weight", drift_weight) + weight + entropy_weight == 0:
        raise FuncrobustError("psi-training needs a term of positive weight")
    _require_fraction(fraction)

    def objective(
        params: Params,
        buffers: Buffers,
        x: Tensor,
        label: Tensor,
        y: Tensor,
        start: Tensor | None = None,
        stops: Tensor | None = None,
        *,
        target: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        predict = autocast(model.with_buffers(buffers), dtype)
        n = max(1, round(fraction * len(x)))
        start, target = (x if start is None else start)[:n], (x if target is None else target)[:n]
        if approach is not None and drift_weight > 0:
            if stops is None:
                raise FuncrobustError("an approach needs its stops in the batch")
            step = approach(predict)
            start = target = _arrived(step, stops[:n], constant(params), start, label[:n])
        metrics: Metrics = {}
        total = x.new_zeros(())
        if drift_weight > 0 or entropy_weight > 0:
            end = psi(predict)(params, start, label[:n])
            metrics["drift"] = distance(target, end).mean()
            total = drift_weight * metrics["drift"]
        if entropy_weight > 0:
            metrics["entropy"] = entropy(predict)(params, end, label[:n]).mean()
            total = total + entropy_weight * metrics["entropy"]
        if weight > 0:
            metrics["anchor"] = anchor(predict)(params, x, y).mean()
            total = total + weight * metrics["anchor"]
        return total, (buffers, {name: m.detach() for name, m in metrics.items()})

    return objective


def _arrived(step: Step, stops: Tensor, params: Params, start: Tensor, label: Tensor) -> Tensor:
    """Take ``stops`` (B,) steps from ``start``, each image its own number; constant."""
    x = start
    for t in range(int(stops.max())):
        x = torch.where(per_example(t < stops, x), step(params, x, label, start), x)
    return x.detach()


STARTS = "psi.starts"
"""The name under which `with_learned_starts` keeps its images among the parameters."""


def with_learned_starts(objective: TrainingObjective, *, rate: float) -> TrainingObjective:
    """Optimise the start images along with θ: min over θ and {xᵢ} of Σ ‖xᵢ − ψ(xᵢ; θ)‖².

    ``objective`` is `psi_training`'s. The batch is ``(x, label, y, index)``: the anchor sees x and
    y, ψ starts from, and is compared with, the images ``index`` (B,) of the N kept in
    ``params[STARTS]`` (N, C, H, W). They are stored divided by ``rate``, so that a step of SGD
    moves an image ``rate``² times as far as it would a weight; they are clamped to [0, 1] where
    used.
    """

    def joint(
        params: Params, buffers: Buffers, x: Tensor, label: Tensor, y: Tensor, index: Tensor
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        network = {name: p for name, p in params.items() if name != STARTS}
        starts = (rate * params[STARTS][index]).clamp(0.0, 1.0)
        return objective(network, buffers, x, label, y, starts, target=starts)

    return joint


def _require_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise FuncrobustError(f"fraction must be in (0, 1], got {fraction}")


def _attacked(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    """`Functional.by_batch` on torch's own batch norm: the faster one for a first derivative."""
    return autocast(lambda params, x: model.predict_train(params, buffers, x)[0], dtype)


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).float().mean()
