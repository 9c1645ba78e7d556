"""The two methods as training objectives: each formula on one screen.

A training objective is ``(params, buffers, *batch) -> (scalar, (buffers, metrics))``; it is what
`funcrobust.updates.make_update` differentiates. Training-mode batch norm appears here alone:
attacks and regularisers see a `Predict` bound to the running statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.curvature import cure
from funcrobust.errors import FuncrobustError, require_finite
from funcrobust.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.losses import Loss, cross_entropy
from funcrobust.perturbations import Perturbation, constant
from funcrobust.updates import Metrics, TrainingObjective

Attack = Callable[[Loss], Perturbation]
"""Builds the attack on a loss: ``lambda loss: fr.fgsm(loss, ball, step_size=10 / 255)``."""


def cure_training(
    model: Functional,
    attack: Attack | None,
    *,
    lam: float,
    h: float,
    direction: str = "classic",
    fraction: float = 1.0,
    label_smoothing: float = 0.0,
    batch_statistics: bool = False,
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """Adversarial training plus CURE (the CURE document):

        x̂ = attack(θ, start, y; centre x)                         held constant
        L(θ) = mean ℓ(θ, x̂, y) + λ · mean ‖∇ₓℓ(θ, x + z, y) − ∇ₓℓ(θ, x, y)‖₂

    The batch is ``(x, y, start)``, images (B, C, H, W), and for the "random" direction also noise
    in [−1, 1] of x's shape. ``attack=None`` trains on x itself. ``fraction`` of the batch carries
    the curvature term: in a shuffled batch an unbiased estimate, at that fraction of the cost.
    ``batch_statistics`` lets the attack see the batch's own batch-norm statistics instead of the
    running ones. ``dtype`` is autocast's. ``label_smoothing`` is the main term's alone.

    Raises `FuncrobustError` for λ or h negative or not finite, or ``fraction`` outside (0, 1].
    """
    require_finite("lam", lam)
    require_finite("h", h)
    if not 0 < fraction <= 1:
        raise FuncrobustError(f"fraction must be in (0, 1], got {fraction}")

    def objective(
        params: Params,
        buffers: Buffers,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        loss = cross_entropy(autocast(model.with_buffers(buffers), dtype))
        attacked = cross_entropy(_batch_norm_by_batch(model, buffers, dtype))
        perturbed = x
        if attack is not None:
            step = attack(attacked if batch_statistics else loss)
            perturbed = step(constant(params), start, y, center=x).detach()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            logits, buffers_after = model.predict_train(params, buffers, perturbed)
        logits = logits.to(x.dtype)
        robust = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        metrics = {"loss": robust, "accuracy": _accuracy(logits, y)}
        total = robust
        if lam > 0 and direction != "none":
            n = max(1, round(fraction * len(x)))
            toward = {"random": noise, "fgsm": perturbed}.get(direction)
            regulariser = cure(
                loss, h, direction=direction, toward=None if toward is None else toward[:n]
            )
            metrics["curvature"] = regulariser(params, x[:n], y[:n]).mean()
            total = robust + lam * metrics["curvature"]
        return total, (buffers_after, {name: m.detach() for name, m in metrics.items()})

    return objective


def psi_training(
    model: Functional,
    drift: Callable[[Predict], Loss],
    *,
    anchor: Callable[[Predict], Loss] = cross_entropy,
    weight: float,
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """ψ-training with an anchor:

        L(θ) = mean ‖x − ψ(x; θ)‖² + μ · mean a(θ, x, y)

    ``drift`` and ``anchor`` build their losses on a `Predict`; μ is ``weight``, and 0 is the ψ
    document's loss alone. The batch is ``(x, label, y)``: ψ moves x toward (or from) ``label``; y
    is the true one. The network stays in evaluation mode, so that its statistics cannot move: in
    the published code they alone did.
    """

    def objective(
        params: Params, buffers: Buffers, x: Tensor, label: Tensor, y: Tensor
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        predict = autocast(model.with_buffers(buffers), dtype)
        metrics = {"drift": drift(predict)(params, x, label).mean()}
        total = metrics["drift"]
        if weight > 0:
            metrics["anchor"] = anchor(predict)(params, x, y).mean()
            total = total + weight * metrics["anchor"]
        return total, (buffers, {name: m.detach() for name, m in metrics.items()})

    return objective


def _batch_norm_by_batch(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    return autocast(lambda params, x: model.predict_train(params, buffers, x)[0], dtype)


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).float().mean()
