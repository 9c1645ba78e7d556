"""From ``psi-train``'s options to the algebra: ψ, its anchor, the composed terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import funcrobust as fr
from funcrobust.commands.psi_train.options import PsiTrain, read_derivative
from funcrobust.core.examples import per_example
from funcrobust.core.losses import DISTANCES
from funcrobust.running.restoring import carried
from funcrobust.running.threat import pick_ball

PSI_LOSSES: dict[str, Callable[[fr.Predict], fr.Loss]] = {
    "cross-entropy": fr.cross_entropy, "log-odds": fr.log_odds, "margin": fr.margin,
    "logit": fr.logit, "entropy": fr.entropy,
}  # fmt: skip
STOPS = (4, 16)
"""Steps that images of --start made have walked: early ones are noise, later ones overdrawn."""
STARTS = "starts"
"""The name under which learned start images are kept among the parameters. Without a dot, so that
the network does not look for it."""


class PsiBatch(NamedTuple):
    """What an update of ψ-training draws."""

    x: Tensor
    label: Tensor
    """(B,): the class that ψ moves toward, or from."""
    y: Tensor
    """(B,): the true one."""
    degraded: Tensor | None = None
    """What ψ is to restore x from; of those images alone that ψ runs on."""
    near: Tensor | None = None
    """Where the anchor's attack starts; x, unless given."""
    start: Tensor | None = None
    """Where the drift's ψ starts; x, unless given."""
    stops: Tensor | None = None
    """(B,): how many steps the network walks from the start before ψ starts (--start made)."""
    chosen: Tensor | None = None
    """(B,): which of the learned starts ψ starts from."""


def derivative_named(text: str) -> fr.Derivative:
    """Build what ``--derivative`` names."""
    name, number = read_derivative(text)
    if name == "adjoint":
        return fr.adjoint() if number is None else fr.adjoint(every=number)
    if name == "implicit":
        return fr.implicit() if number is None else fr.implicit(maxiter=number)
    if number is not None:
        return fr.truncated(number)
    return fr.unrolled() if name == "unrolled" else fr.one_step()


def psi_ball(options: PsiTrain) -> fr.Ball:
    """Build ψ's ball. Along the gradient itself there are no bounds, which noise would exceed."""
    if options.constraint == "unconstrained":
        return fr.unconstrained(bounds=None)
    return pick_ball(options.constraint, options.radius)


def make_psi(
    options: PsiTrain, ball: fr.Ball, predict: fr.Predict, steps: int | None = None
) -> fr.Perturbation:
    """Build ψ over a `Predict`."""
    assert options.step_size is not None, "filled in when the images are known"
    return fr.psi(
        PSI_LOSSES[options.psi_loss](predict), ball, step_size=options.step_size,
        steps=options.steps if steps is None else steps, targeted=options.targeted,
        derivative=derivative_named(options.derivative),
    )  # fmt: skip


Anchor = Callable[[fr.Predict, Tensor | None], fr.Loss]
"""``(predict, start of its attack) -> Loss``."""


def make_anchor(options: PsiTrain, teacher: Callable[[Tensor], Tensor]) -> Anchor:
    """Build the anchor: s·ℓ(x) + (1 − s)·ℓ(x̂), s its share.

    ℓ is the divergence from the network before with some cross-entropy ("keep"), or the
    cross-entropy alone ("both"); "clean" is s = 1, "robust" s = 0.
    """
    epsilon, steps = threat_radius(options), options.anchor_steps
    # One step from a random start is RS-FGSM (Wong et al. 2020); several from x go 2.5 times as far
    # in all as the radius, as Madry et al. do.
    step_size = 1.25 * epsilon if steps == 1 else 2.5 * epsilon / steps
    ball = fr.linf(epsilon)

    def anchor(predict: fr.Predict, start: Tensor | None) -> fr.Loss:
        entropy = fr.cross_entropy(predict)
        keep = options.anchor_loss == "keep"
        loss = fr.distillation(predict, teacher, hard=options.hard) if keep else entropy
        if options.anchor_loss == "clean":
            return loss
        attack = fr.pgd(fr.log_odds(predict), ball, step_size=step_size, steps=steps)
        robust = fr.adversarial(loss, attack, start=start)
        if options.anchor_loss == "robust":
            return robust
        share = options.anchor_share
        return fr.weighted_sum((share, loss), (1 - share, robust))

    return anchor


def threat_radius(options: PsiTrain) -> float:
    """Return the radius of the robust accuracy and the anchor."""
    return 8 / 255 if options.epsilon is None else options.epsilon


@dataclass(frozen=True)
class Composition:
    """``compose(modes, batch)``: ψ-training with an anchor.

        L(θ) = w · mean ‖x − ψ(s; θ)‖²/(d·ρ)                            restoration
             + δ · mean ‖z − ψ(z; θ)‖²  +  η · mean H(p(θ, ψ(z; θ)))    drift, entropy
             + μ · mean a(θ, x, y)                                      anchor

    s is x degraded, toward x's own class; z the drift's start, toward (or from) the label: x,
    unless the batch has another. The ψ document's loss alone is δ = 1 with all else 0; w = δ = 0 is
    the control, all without ψ. With z a mixture, ψ's end is compared with x; with an image that the
    network made itself (the batch's ``stops``), with z. The first part of the batch carries ψ,
    whose derivative costs many times the anchor's.

    The network is in evaluation mode, so that its statistics cannot move: in the published code
    they alone did.
    """

    options: PsiTrain
    ball: fr.Ball
    anchor: Anchor

    def __call__(self, modes: fr.Modes, batch: PsiBatch) -> fr.Terms:
        """Compose the terms of one update."""
        options, predict = self.options, modes.running
        psi = make_psi(options, self.ball, predict)
        n = carried(options.drift_fraction, len(batch.x))
        terms = {}
        if batch.degraded is not None:
            restored = fr.restoration(psi, batch.degraded[:n])
            terms["restoration"] = (options.restore, fr.at(restored, batch.x[:n], batch.y[:n]))
        if options.drifts:
            terms |= self.drifting(modes, batch, psi, n)
        return terms | {"anchor": (options.anchor, self.anchor(predict, batch.near))}

    def drifting(
        self, modes: fr.Modes, batch: PsiBatch, psi: fr.Perturbation, n: int
    ) -> dict[str, tuple[float, fr.Loss]]:
        """Compose what ψ does from the drift's own starts."""
        options = self.options
        start, toward = self.ends(modes, batch, n)
        learned = batch.chosen is not None  # then what ψ moves is what its end is compared with

        def placed(loss: fr.Loss) -> fr.Loss:
            if learned:
                return from_learned(loss, batch, n, options.starts_rate)
            return fr.at(loss, start, batch.label[:n])

        distance = DISTANCES[options.distance]
        drift = fr.drift(psi, distance=distance, toward=None if learned else toward)
        entropy = fr.through(psi, fr.entropy(modes.running))
        return {
            "drift": (options.drift_weight, placed(drift)),
            "entropy": (options.entropy, placed(entropy)),
        }

    def ends(self, modes: fr.Modes, batch: PsiBatch, n: int) -> tuple[Tensor, Tensor]:
        """Return where the drift's ψ starts, and what its end is compared with."""
        start = (batch.x if batch.start is None else batch.start)[:n]
        if batch.stops is None:
            return start, batch.x[:n]
        assert self.options.step_size is not None
        step = fr.gradient_step(
            PSI_LOSSES[self.options.psi_loss](modes.running), self.ball,
            step_size=self.options.step_size, targeted=self.options.targeted,
        )  # fmt: skip
        start = arrived(step, batch.stops[:n], modes.params, start, batch.label[:n])
        return start, start


def arrived(
    step: fr.Step, stops: Tensor, params: fr.Params, start: Tensor, label: Tensor
) -> Tensor:
    """Take ``stops`` (B,) steps from ``start``, each image its own number; constant.

    All take the longest way, and those that have arrived stay: a loop that no value decides.
    """
    x = start
    for t in range(STOPS[1]):
        x = torch.where(per_example(t < stops, x), step(params, x, label, start), x)
    return x.detach()


def from_learned(loss: fr.Loss, batch: PsiBatch, n: int, rate: float) -> fr.Loss:
    """ℓ(θ, s, label) at the start images s that are learned along with θ.

    They are the batch's ``chosen`` of the N in ``params[STARTS]`` (N, C, H, W), stored divided by
    ``rate``, so that a step of SGD moves an image rate² times as far as it would a weight; and
    clamped to [0, 1] where used.
    """

    def learned(params: fr.Params, _x: Tensor, _y: Tensor) -> Tensor:
        assert batch.chosen is not None
        starts = (rate * params[STARTS][batch.chosen[:n]]).clamp(0.0, 1.0)
        return loss(params, starts, batch.label[:n])

    return learned
