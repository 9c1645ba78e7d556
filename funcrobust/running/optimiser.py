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
TYPICAL: dict[str, tuple[float, float]] = {
    "SGD": (0.2, 5e-4),  # of fast adversarial training (Wong et al. 2020, arXiv:2001.03994)
    "Adam": (1e-3, 0.0),  # torch.optim's, as AdamW's
    "AdamW": (1e-3, 0.01),
    "Muon": (5e-3, 0.3),  # docs/recipes.md, "Muon"
}
"""Rate and decay."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(Options):
    """Optimiser."""

    batch_size: Annotated[int, Ge(2)] = 128
    """Images an update sees."""
    opt: Opt = "SGD"
    """The optimiser; Muon is for weight matrices and kernels, AdamW moves the rest beside it."""
    lr_max: Rate | None = None
    """Highest learning rate; left out: 0.2 for SGD, 0.005 for Muon, 0.001 for Adam and AdamW."""
    lr_min: Annotated[Weight, unless(lr_schedule="constant")] = 0.0
    """Floor of the learning rate."""
    lr_schedule: Schedule = "cosine"
    """The learning rate over the run."""
    momentum: Annotated[Weight, only_with(opt=("SGD", "Muon"))] = 0.9
    """SGD's and Muon's momentum."""
    weight_decay: Weight | None = None
    """L2 regularisation for SGD and Adam, decoupled for AdamW and Muon; left out: 0.0005 for SGD,
    0.3 for Muon, 0.01 for AdamW, none for Adam."""

    @property
    def rate(self) -> float:
        """The highest learning rate: --lr-max, or what goes with the optimiser."""
        return TYPICAL[self.opt][0] if self.lr_max is None else self.lr_max

    @property
    def decay(self) -> float:
        """The weight decay: --weight-decay, or what goes with the optimiser."""
        return TYPICAL[self.opt][1] if self.weight_decay is None else self.weight_decay

    def check(self) -> None:
        """Refuse a floor above the ceiling."""
        super().check()
        if self.lr_min > self.rate:
            raise FuncrobustError(f"--lr-min {self.lr_min:g} exceeds --lr-max {self.rate:g}")
