"""The options of ``study``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge

from funcrobust.commands.study.variants import VARIANTS, is_trained
from funcrobust.core.errors import FuncrobustError
from funcrobust.running.groups import Images, Machine, Precision
from funcrobust.running.judge_names import JudgeOption
from funcrobust.running.marks import Count, Flag
from funcrobust.running.options import only_with
from funcrobust.running.places import CheckpointName, Folder


@dataclass(frozen=True, kw_only=True)
class Study(Images, Machine):
    """Study."""

    shared: ClassVar[bool] = True

    variants: tuple[str, ...] = field(default=(), kw_only=False)
    """Variants of docs/psi-study.md, run folders or checkpoints; left out: all variants."""
    checkpoint: CheckpointName | None = None
    """The classifier to transfer; left out: the shipped one."""
    judges: Annotated[tuple[JudgeOption, ...], Flag("--judge")] = ()
    """What scores: a classifier, inception or timm:NAME; again and again for several; left out: the
    shipped one."""
    repeats: Annotated[Count, only_with(trains=True)] = 1
    """Trainings of each variant, with seeds from --seed on; figures are their mean and spread."""
    images: Annotated[int, Ge(10)] = 5000
    """How many to make from each kind of start; twice as many test images, and 2000 at least, are
    what they are compared with."""
    choosing: Annotated[int, Ge(10)] = 1000
    """Images, of other starts, by which each network's best way to draw is chosen."""
    examples: Annotated[int, Ge(2)] | None = None
    """Test images of the accuracies, at random; left out: all."""
    attack_steps: Count = 20
    """PGD steps of the robust accuracy."""
    updates: Annotated[Count, only_with(transfers=True)] | None = None
    """Of every transfer; left out: psi-train's default."""
    out: Folder = Path("runs/study")
    """Folder of all of it."""
    precision: Precision = "auto"
    """fp32, bf16 for autocast, or auto: bf16 where the hardware multiplies it."""

    @property
    def trains(self) -> bool:
        """A variant that psi-train makes, as 'default' or 'control'."""
        return any(map(is_trained, self.variants or VARIANTS))

    @property
    def transfers(self) -> bool:
        """A variant that is made by updates: 'published', or one of psi-train's."""
        return self.trains or "published" in self.variants

    def check(self) -> None:
        """Refuse to judge by nobody."""
        super().check()
        if "none" in self.judges:
            raise FuncrobustError(
                "--judge none: a study needs somebody to score; name a judge, or leave --judge out "
                "for the shipped one"
            )
