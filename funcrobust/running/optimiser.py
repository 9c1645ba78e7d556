"""The options of the optimiser, and what goes with each where it is not said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.marks import Flag, Weight
from funcrobust.running.options import Options, only_with, unless

Opt = Literal["SGD", "Adam", "AdamW", "Muon"]
Rate = Annotated[Weight, Flag("--lr-max", "--lr")]
Schedule = Literal[
    "piecewise", "linear", "cyclic", "cosine", "onedrop", "multipledecay", "superconverge",
    "constant",
]  # fmt: skip
TYPICAL: dict[str, dict[str, float]] = {
    "SGD": {"lr_max": 0.2, "weight_decay": 5e-4},  # Wong et al. 2020 (arXiv:2001.03994)
    "Adam": {"lr_max": 1e-3, "weight_decay": 0.0},  # torch.optim's, as AdamW's
    "AdamW": {"lr_max": 1e-3, "weight_decay": 0.01},
    "Muon": {"lr_max": 5e-3, "weight_decay": 0.3},  # docs/recipes.md, "Muon"
}
"""What goes with an optimiser in adversarial training."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(Options):
    """Optimiser."""

    batch_size: Annotated[int, Ge(2)] = 128
    """Images an update sees."""
    opt: Opt = "SGD"
    """The optimiser; Muon is for weight matrices and kernels, AdamW moves the rest beside it."""
    lr_max: Rate = 0.1
    """Highest learning rate."""
    lr_min: Annotated[Weight, unless(lr_schedule="constant")] = 0.0
    """Floor of the learning rate."""
    lr_schedule: Schedule = "cosine"
    """The learning rate over the run."""
    momentum: Annotated[Weight, only_with(opt=("SGD", "Muon"))] = 0.9
    """SGD's and Muon's momentum."""
    weight_decay: Weight = 0.0
    """L2 regularisation; AdamW's and Muon's is decoupled."""

    def check(self) -> None:
        """Refuse a floor above the ceiling."""
        super().check()
        if self.lr_min > self.lr_max:
            raise FuncrobustError(f"--lr-min {self.lr_min:g} exceeds --lr-max {self.lr_max:g}")


def unusual_rate(options: Optimiser) -> str:
    """Say that a rate is far above what its optimiser usually takes; "" if it is not."""
    usual = TYPICAL[options.opt]["lr_max"]
    if options.opt == "SGD" or options.lr_max <= 10 * usual:
        return ""
    return (
        f"--lr-max {options.lr_max:g} is {options.lr_max / usual:.0f} times what {options.opt} "
        f"usually takes, {usual:g}: a rate of SGD's wants --opt SGD beside it"
    )
