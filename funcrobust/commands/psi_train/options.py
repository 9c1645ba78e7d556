"""The options of ``psi-train``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.running.groups import Radius, Restored, Run
from funcrobust.running.marks import Choices, Count, Flag, Spelled, Weight
from funcrobust.running.optimiser import Opt, Rate
from funcrobust.running.options import Options, only_with, unless
from funcrobust.running.places import CheckpointName, Factory

DERIVATIVES = r"adjoint(:\d+)?|unrolled|truncated:[1-9]\d*|one-step|implicit(:[1-9]\d*)?"


def read_derivative(text: str) -> tuple[str, int | None]:
    """Read a name, and after a colon the number that its function takes."""
    if not re.fullmatch(DERIVATIVES, text):
        names = "adjoint, adjoint:N, unrolled, truncated:N, one-step, implicit, implicit:N"
        raise FuncrobustError(f"unknown --derivative {text!r}: choose from {names}")
    name, _, number = text.partition(":")
    return name, int(number) if number else None


def _require_label(text: str) -> None:
    if text not in ("own", "random") and not text.isdecimal():
        raise FuncrobustError(f"--label must be own, random or a class number, got {text!r}")


DRIFT: dict[str, Any] = {
    "start": "made", "restore": 0.0, "drift_weight": 1.0, "drift_fraction": 0.25, "steps": 5,
    "step_size": 0.5,
    "constraint": "l2", "psi_loss": "cross-entropy", "anchor": 40.0, "anchor_share": 0.5,
    "hard": 0.0, "anchor_steps": 3, "clip_norm": 1.0, "updates": 140, "aim": 0.28,
    "batch_size": 128, "opt": "SGD", "lr_max": 0.008, "ema": 0.0,
}  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {"restoration": {}, "drift": DRIFT}
"""The values in which an objective differs from the class `PsiTrain`, which is restoration."""


@dataclass(frozen=True, kw_only=True)
class Walked(Options):
    """ψ."""

    steps: Count = 1
    """Steps of ψ in training."""
    step_size: Annotated[float, Gt(0)] | None = None
    """Of ψ, in units of the data; left out: a 300th of the count of an image's numbers."""
    constraint: Literal["l2", "unconstrained", "fourier"] = "unconstrained"
    """ψ's ball: unconstrained steps along the gradient itself, l2 along its direction."""
    radius: Annotated[Weight, only_with(constraint="l2")] = 30.0
    """The radius of ψ's ball."""
    targeted: Annotated[bool, Flag(off="--untargeted")] = True
    """Toward the label, or away from it."""
    label: Annotated[
        str, Spelled(_require_label), only_with(drift_weight=..., entropy=...),
        unless(learn_starts=...),
    ] = "own"  # fmt: skip
    """Of the drift: own, random, or a class number."""
    psi_loss: Literal["logit", "log-odds", "cross-entropy", "margin", "entropy"] = "logit"
    """What ψ descends (or, untargeted, ascends); logit is −z_y."""
    derivative: Annotated[
        str, Spelled(read_derivative), only_with(restore=..., drift_weight=..., entropy=...)
    ] = "adjoint"  # fmt: skip
    """adjoint (adjoint:N keeps each N-th iterate, adjoint:0 each √steps-th), unrolled, truncated:N
    (the last N of more steps), one-step, or implicit (implicit:N: at most N iterations of the
    solver)."""
    drift_fraction: Annotated[
        float, Gt(0), Le(1), only_with(restore=..., drift_weight=..., entropy=...)
    ] = 1.0  # fmt: skip
    """Share of the batch that ψ runs on; the anchor sees all of it."""

    def check(self) -> None:
        """Refuse a length that is only right along the gradient, and a truncation of nothing."""
        super().check()
        name, last = read_derivative(self.derivative)
        if name == "truncated" and last is not None and last >= self.steps:
            raise FuncrobustError(
                f"--derivative {self.derivative} truncates nothing of --steps {self.steps}: take "
                "fewer, or say unrolled"
            )
        if self.step_size is None and self.constraint != "unconstrained":
            raise FuncrobustError(
                f"--constraint {self.constraint} needs --step-size: a default is for unconstrained"
            )


@dataclass(frozen=True, kw_only=True)
class Drifting(Options):
    """Drift."""

    drift_weight: Weight = 0.0
    """Weight of the ψ document's own ‖s − ψ(s; θ)‖²."""
    start: Annotated[
        Literal["made", "own", "gaussian", "noise"],
        only_with(drift_weight=..., entropy=...), unless(learn_starts=...),
    ] = "own"  # fmt: skip
    """Where ψ starts: the image itself (own, the document); an image that the network made from a
    Gaussian start of the class in 4 to 16 steps (made): ψ is trained to stay there; or the image
    mixed with a Gaussian image of its class (gaussian) or with white noise (noise)."""
    start_noise: Annotated[float, Ge(0), Le(1), only_with(start=("gaussian", "noise"))] = 0.5
    """The largest share of that mixture."""
    distance: Annotated[Literal["mse", "l1", "ssim"], only_with(drift_weight=...)] = "mse"
    """Between s and ψ(s)."""
    entropy: Weight = 0.0
    """Weight of the entropy of the prediction where ψ ends."""
    learn_starts: Annotated[int, Ge(0), only_with(drift_weight=..., entropy=...)] = 0
    """Optimise so many start images along with θ; 0: none, starts are data."""
    starts_rate: Annotated[float, Gt(0), only_with(learn_starts=...)] = 30.0
    """A step moves a start image this squared times as far as it would a weight."""
    aim: Annotated[float, Ge(0), Le(1), only_with(drift_weight=...)] = 1.0
    """Stop once the held-out drift has fallen by this share; 1 runs all updates."""


@dataclass(frozen=True, kw_only=True)
class Anchored(Options):
    """Anchor."""

    anchor: Weight = 8.0
    """The anchor's μ (docs/psi-study.md has what it trades); 0: none."""
    anchor_loss: Annotated[Literal["keep", "clean", "robust", "both"], only_with(anchor=...)] = (
        "keep"
    )
    """keep: the divergence from the network before, on images and on adversarial ones; or the
    cross-entropy: clean, robust or both.

    The divergence has no slope at the start, so that it takes nothing while ψ's term is low, where
    cross-entropy on small batches already costs robustness.
    """
    anchor_share: Annotated[
        float, Gt(0), Lt(1), only_with(anchor=...), only_with(anchor_loss=("keep", "both"))
    ] = 0.6  # fmt: skip
    """Share of the anchor that is on the images themselves; the rest is on adversarial ones."""
    hard: Annotated[Weight, only_with(anchor=...), only_with(anchor_loss="keep")] = 0.2
    """Weight of the true label's cross-entropy beside the divergence, as a share of μ."""
    anchor_steps: Annotated[
        Count, only_with(anchor=...), only_with(anchor_loss=("keep", "robust", "both"))
    ] = 1  # fmt: skip
    """PGD steps of the robust anchor; 1 is FGSM from a random start."""
    clip_norm: Weight = 5.0
    """Largest gradient norm; 0: unclipped."""


@dataclass(frozen=True, kw_only=True)
class PsiTrain(Walked, Restored, Drifting, Anchored, Run):
    """Transfer."""

    chosen_by = "objective"

    objective: Annotated[str, Choices(OBJECTIVES)] = "restoration"
    """Where the other options begin: restoration trains ψ to restore degraded images, drift is the
    ψ document's own."""
    checkpoint: CheckpointName | None = None
    """File, run folder, shipped name or robustbench:NAME; left out: the shipped classifier."""
    model: Annotated[str, Factory] | None = None
    """Architecture of a foreign .pt file, the factory of a checkpoint of your own network, or
    NAME-flip of a checkpoint of NAME."""
    restore: Weight = 8.0
    updates: Annotated[Count, unless(minutes=...)] = 6000
    """Updates at most."""
    batch_size: Annotated[int, Ge(2)] = 64
    opt: Opt = "Adam"
    lr_max: Rate = 5e-4
    ema: Annotated[float, Ge(0), Lt(1)] = 0.998
    """Decay of the weight average that is evaluated and kept; 0 keeps none."""
    strips: Annotated[int, Ge(0)] = 5
    """How many before-and-after pictures to leave along the way; 0: none."""
    heldout_examples: Count = 512
    """Test images behind the drift."""
    compile: bool | None = None
    """Make the update one graph, checked against the eager one; left out: no.

    Not on CUDA either: compiled, ψ is the unrolled iteration, and its memory grows with the steps.
    """
    epsilon: Radius | None = None
    """Radius of the L∞ ball of the robust accuracy and the anchor; left out: the checkpoint's, if
    it is of L∞."""

    @classmethod
    def beneath(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the objective's values."""
        name = given.get("objective", "restoration")
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES)
        return OBJECTIVES[name] | {"objective": name}

    @property
    def begins(self) -> str:
        """Where the drift's ψ starts: --start, or "learned"."""
        return "learned" if self.learn_starts else self.start

    @property
    def drifts(self) -> bool:
        """Whether ψ also runs from starts of the drift's."""
        return self.drift_weight + self.entropy > 0

    @property
    def solves(self) -> bool:
        """Whether ψ's derivative is the solution of an equation."""
        return read_derivative(self.derivative)[0] == "implicit"

    @property
    def restores(self) -> bool:
        """Whether one step of ψ along the logit's slope restores, as drawing by it takes."""
        plain = self.constraint == "unconstrained" and self.psi_loss == "logit" and self.targeted
        return self.restore > 0 and self.steps == 1 and plain

    def check(self) -> None:
        """Refuse to train by nothing."""
        super().check()
        if self.capture and self.solves:
            raise FuncrobustError(
                f"--capture: --derivative {self.derivative} ends where its solver has arrived, "
                "which no CUDA graph can wait for"
            )
        if not (self.restore or self.drifts or self.anchor):
            raise FuncrobustError("--restore, --drift-weight, --entropy and --anchor are all 0")
        if self.learn_starts and self.opt == "Muon":
            raise FuncrobustError(
                "--opt Muon is for matrices, which --learn-starts' images are not"
            )
