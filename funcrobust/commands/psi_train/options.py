"""The options of ``psi-train``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.groups import Radius, Rate, Run
from funcrobust.running.options import Count, Flag, Options, Spelled, Weight, only_with, unless

DERIVATIVES = r"adjoint(:\d+)?|unrolled|truncated:[1-9]\d*|one-step|implicit(:[1-9]\d*)?"


def _require_derivative(text: str) -> None:
    if not re.fullmatch(DERIVATIVES, text):
        names = "adjoint, adjoint:N, unrolled, truncated:N, one-step, implicit, implicit:N"
        raise FuncrobustError(f"unknown --derivative {text!r}: choose from {names}")


def _require_label(text: str) -> None:
    if text not in ("own", "random") and not text.isdecimal():
        raise FuncrobustError(f"--label must be own, random or a class number, got {text!r}")


@dataclass(frozen=True, kw_only=True)
class Walked(Options):
    """ψ."""

    steps: Count = 5
    """Steps of ψ."""
    step_size: Weight = 0.5
    """Of ψ."""
    constraint: Literal["l2", "unconstrained", "fourier"] = "l2"
    """ψ's ball."""
    radius: Annotated[Weight, only_with(constraint="l2")] = 30.0
    """The radius of ψ's ball."""
    targeted: Annotated[bool, Flag(off="--untargeted")] = True
    """Toward the label, or away from it."""
    label: Annotated[str, Spelled(_require_label), unless(learn_starts=...)] = "own"
    """own, random, or a class number."""
    psi_loss: Literal["cross-entropy", "margin", "logit", "entropy"] = "cross-entropy"
    """What ψ descends (or, untargeted, ascends)."""
    derivative: Annotated[str, Spelled(_require_derivative)] = "adjoint"
    """adjoint (adjoint:N keeps each N-th iterate, adjoint:0 each √steps-th), unrolled, truncated:N
    (the last N steps), one-step, or implicit (implicit:N: at most N iterations of the solver)."""
    start: Annotated[Literal["made", "own", "gaussian", "noise"], unless(learn_starts=...)] = "made"
    """Where ψ starts: the image itself (own, the document); an image that the network made from a
    Gaussian start of the class in 4 to 16 steps (made): ψ is trained to stay there; or the image
    mixed with a Gaussian image of its class (gaussian) or with white noise (noise): ψ is trained
    to restore it."""
    start_noise: Annotated[float, Ge(0), Le(1), only_with(start=("gaussian", "noise"))] = 0.5
    """The largest share of that mixture."""
    learn_starts: Annotated[int, Ge(0)] = 0
    """Optimise so many start images along with θ; 0: none, starts are data."""
    starts_rate: Annotated[float, Gt(0), only_with(learn_starts=...)] = 30.0
    """A step moves a start image this squared times as far as it would a weight."""


@dataclass(frozen=True, kw_only=True)
class Anchored(Options):
    """Drift and anchor."""

    distance: Literal["mse", "l1", "ssim"] = "mse"
    """Between x and ψ(x)."""
    drift_weight: Weight = 1.0
    """0 is a control, the anchor alone."""
    drift_fraction: Annotated[
        float, Gt(0), Le(1), only_with(drift_weight=..., entropy=...)
    ] = 0.25  # fmt: skip
    """Share of the batch that ψ runs on; the anchor sees all of it."""
    entropy: Weight = 0.0
    """Weight of the entropy of the prediction where ψ ends."""
    anchor: Weight = 40.0
    """The anchor's μ (docs/psi-study.md has what it trades); 0: the drift alone."""
    anchor_loss: Annotated[Literal["keep", "clean", "robust", "both"], only_with(anchor=...)] = (
        "keep"
    )
    """keep: the divergence from the network before, on images and on adversarial ones; or the
    cross-entropy: clean, robust or both.

    The divergence has no slope at the start, so that it takes nothing while the drift is low, where
    cross-entropy on small batches already costs robustness.
    """
    anchor_steps: Annotated[
        Count, only_with(anchor=...), only_with(anchor_loss=("keep", "robust", "both"))
    ] = 3  # fmt: skip
    """PGD steps of the robust anchor: 1 is FGSM."""
    clip_norm: Weight = 1.0
    """Largest gradient norm; 0: unclipped."""

    def check(self) -> None:
        """Refuse to train by nothing."""
        super().check()
        if not (self.drift_weight or self.entropy or self.anchor):
            raise FuncrobustError("--drift-weight, --entropy and --anchor are all 0")


@dataclass(frozen=True, kw_only=True)
class PsiTrain(Walked, Anchored, Run):
    """Transfer."""

    checkpoint: str | None = None
    """File, run folder or shipped name; left out: the shipped classifier."""
    model: str | None = None
    """Architecture of a foreign .pt file, or the factory of a checkpoint of your own network."""
    updates: Count = 140
    """Updates at most."""
    lr_max: Rate = 0.008
    aim: Annotated[float, Ge(0), Le(1)] = 0.28
    """Stop once the held-out drift has fallen by this share; 1 runs all updates."""
    strips: Annotated[int, Ge(0)] = 5
    """How many before-and-after pictures to leave along the way; 0: none."""
    heldout_examples: Count = 512
    """Test images behind the drift."""
    compile: bool | None = None
    """Make the update one graph, checked against the eager one; left out: no.

    Not on CUDA either: compiled, ψ is the unrolled iteration, and its memory grows with the steps.
    """
    epsilon: Radius | None = None
    """Radius of the L∞ ball of the robust accuracy and the anchor; left out: the checkpoint's."""

    @property
    def begins(self) -> str:
        """Where ψ starts: --start, or "learned"."""
        return "learned" if self.learn_starts else self.start
