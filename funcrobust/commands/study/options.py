"""The options of ``study``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from funcrobust.running.groups import Images, Machine, Precision
from funcrobust.running.options import Count, Where


@dataclass(frozen=True, kw_only=True)
class Study(Images, Machine):
    """Study."""

    variants: tuple[str, ...] = field(default=(), kw_only=False)
    """Variants of docs/psi-study.md, run folders or checkpoints; left out: all variants."""
    checkpoint: str | None = None
    """The classifier to transfer; left out: the shipped one."""
    judge: str | None = None
    """The classifier that scores; left out: the shipped one."""
    images: Annotated[int, Ge(10)] = 1000
    """How many to make from each kind of start."""
    examples: Annotated[int, Ge(2)] = 1000
    """Test images of the accuracies; half as many of the drift."""
    attack_steps: Count = 20
    """PGD steps of the robust accuracy."""
    updates: Count | None = None
    """Of every transfer; left out: psi-train's default."""
    out: Annotated[Path, Where()] = Path("runs/study")
    """Folder of all of it."""
    precision: Precision = "auto"
    """fp32, bf16 for autocast, or auto: bf16 where the hardware multiplies it."""
