"""The options of the two trainings, with their defaults: one place for both CLI and Python.

Lengths (epsilon, alpha, step_size) are in units of the data, [0, 1]: 8/255 is 0.0314.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    train_examples: int | None = None
    test_examples: int | None = None
    evaluate_examples: int = 1000
    """Test examples of the figures before and after."""
    evaluate_steps: int = 20
    momentum: float = 0.9
    opt: str = "SGD"
    lr_min: float = 0.0
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
    attack: str = "fgsm"
    attack_steps: int = 10
    constraint: str = "linf"
    epsilon: float = 8 / 255
    alpha: float = 10 / 255
    delta: str = "classic"
    delta_init: str = "random"
    h: float = 3.0
    lam: float = 1.0
    units: str = "normalized"
    cure_fraction: float = 1.0
    label_smoothing: float = 0.0
    attack_statistics: str = "running"
    robust_examples: int = 256
    """Training (and test) examples that PGD-10 attacks after every epoch."""


@dataclass(frozen=True)
class PsiOptions(CommonOptions):
    """Options of `psi_train`."""

    dataset: str = ""
    """Empty: the data that the checkpoint was made for."""
    checkpoint: str | None = None
    updates: int = 100
    batch_size: int = 64
    lr_max: float = 0.003
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    constraint: str = "l2"
    eps: float = 30.0
    step_size: float = 0.5
    steps: int = 5
    targeted: bool = True
    label: str = "own"
    distance: str = "mse"
    backward: str = "adjoint"
    anchor: float = 10.0
    heldout_examples: int = 512
    epsilon: float = 8 / 255
    """Radius of the L∞ ball in which robust accuracy is measured."""
