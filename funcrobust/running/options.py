"""The options of the two trainings, with their defaults: one place for both CLI and Python.

Lengths (epsilon, alpha, step_size) are in units of the data, [0, 1]: 8/255 is 0.0314.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CommonOptions:
    """What every training has."""

    dataset: str = "cifar10"
    data_dir: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    device: str = "auto"
    seed: int = 0
    precision: str = "fp32"
    compile: bool | None = None
    """Compile the update into one graph; None does so on CUDA. (On two CPU cores compiling costs
    two minutes and gains nothing.)"""
    train_examples: int | None = None
    test_examples: int | None = None
    evaluate_examples: int = 1000
    """Test examples of the figures before and after."""
    evaluate_steps: int = 20
    momentum: float = 0.9
    opt: str = "SGD"
    lr_min: float = 0.0
    log: str = "none"
    """Where records go besides metrics.jsonl: none, tensorboard or wandb."""
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class CureOptions(CommonOptions):
    """Options of `cure_train`; the names are the CURE document's where it has them."""

    preset: str = "cpu"
    model: str = "preact-tiny"
    epochs: int = 2
    batch_size: int = 128
    lr_schedule: str = "superconverge"
    lr_max: float = 0.2
    weight_decay: float = 5e-4
    ema: float = 0.0
    """Decay of the weight average that is evaluated and kept; 0 keeps none."""
    attack: str = "rs-fgsm"
    attack_steps: int = 10
    constraint: str = "linf"
    epsilon: float = 8 / 255
    alpha: float | None = None
    """The attack's step; None is 1.25 ε (the usual 10/255 at ε = 8/255), ε for N-FGSM and ε/4 for
    PGD."""
    noise: float = 2.0
    """N-FGSM's k: its start is uniform in ±k·ε."""
    quantile: float = 0.35
    """ZeroGrad's q: the share of an image's gradient entries that it drops."""
    delta: str = "classic"
    delta_init: str = "random"
    h: float = 3.0
    h_schedule: str = "constant"
    lam: float = 1.0
    units: str = "normalized"
    cure_derivative: Literal["shared", "batched", "forward", "central", "one-sided"] = "shared"
    cure_statistics: str = "batch"
    """Batch norm in the regularisers: batch, held or running (`robust_training`). On the digits, 12
    epochs, PGD-20 at 0.15: without CURE 70.0 %, batch 75.0 %, running (the document's) 66.5 %, held
    32.5 %. On CIFAR-10 with running, preact-small-silu stood at 55 % clean after nine epochs and at
    22 % after eleven, while at the batch's own statistics it went on to 58 %."""
    cure_fraction: float = 1.0
    """Share of each batch that carries the regularisers."""
    cure_every: int = 1
    """Regularisers at every k-th update alone, k times as heavy."""
    kappa: float = 0.0
    """Weight of the cross-entropy on clean images."""
    trades: float | None = None
    """TRADES' β: its two terms in place of the cross-entropy on x̂."""
    hat: float = 0.0
    helper: str | None = None
    """Checkpoint of the standard network that labels HAT's helper examples."""
    regularisers: dict[str, float] = field(default_factory=dict)
    """Weights of regularisers by their public names."""
    label_smoothing: float = 0.0
    attack_statistics: str = "batch"
    """Batch norm in the training attack: batch or running. No difference was found."""
    robust_examples: int = 256
    """Training (and test) examples that PGD-10 attacks after every epoch."""

    @property
    def regularised(self) -> bool:
        """Whether anything is added to the loss on x̂."""
        cure = self.lam > 0 and self.delta != "none"
        return cure or self.kappa > 0 or self.hat > 0 or any(self.regularisers.values())


@dataclass(frozen=True)
class PsiOptions(CommonOptions):
    """Options of `psi_train`."""

    dataset: str = ""
    """Empty: the data that the checkpoint was made for."""
    checkpoint: str | None = None
    model: str | None = None
    """Architecture of a foreign .pt file, or the factory of a checkpoint of your own network."""
    precision: str = "auto"
    updates: int = 140
    batch_size: int = 128
    lr_max: float = 0.008
    lr_schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    constraint: str = "l2"
    radius: float = 30.0
    step_size: float = 0.5
    steps: int = 5
    targeted: bool = True
    label: str = "own"
    distance: str = "mse"
    derivative: str = "adjoint"
    psi_loss: str = "cross-entropy"
    """What ψ descends (or, untargeted, ascends): cross-entropy, margin, logit or entropy."""
    start: str = "made"
    """Where ψ starts: the image itself ("own", the document); an image that the network made from a
    Gaussian start of the class in 4 to 16 steps ("made"): ψ is trained to stay there; or the image
    mixed by a random share of up to ``start_noise`` with a Gaussian image of its class
    ("gaussian") or with white noise ("noise"): ψ is trained to restore it."""
    start_noise: float = 0.5
    entropy: float = 0.0
    """Weight of the entropy of the prediction where ψ ends."""
    learn_starts: int = 0
    """How many start images to optimise along with θ; 0: none, starts are data."""
    starts_rate: float = 30.0
    """A step moves a start image this squared times as far as it would a weight."""
    drift_weight: float = 1.0
    """0 is the control: the anchor alone."""
    drift_fraction: float = 0.25
    """Share of the batch that ψ runs on; the anchor sees all of it."""
    anchor_steps: int = 3
    """PGD steps of the robust anchor: 1 is FGSM."""
    strips: int = 5
    """How many before-and-after pictures to leave along the way; 0: none."""
    anchor: float = 40.0
    """μ; docs/psi-study.md has what it trades."""
    anchor_loss: str = "keep"
    """keep: the divergence from the network before, on images and on adversarial ones; or the
    cross-entropy: clean, robust or both. The divergence has no slope at the start, so that it takes
    nothing while the drift is low, where cross-entropy on small batches already costs robustness.
    """
    aim: float = 0.28
    """Stop once the held-out drift has fallen by this share; 1 runs all updates."""
    heldout_examples: int = 512
    epsilon: float | None = None
    """Radius of the L∞ ball of the robust accuracy and the anchor; None is the checkpoint's."""
