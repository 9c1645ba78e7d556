"""Train a robust classifier: fast adversarial training with CURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funcrobust.commands.cure_train.options import CureTrain

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter
    from funcrobust.running.holding import Result

__all__ = ["CureTrain", "run"]


def run(options: CureTrain, reporter: Reporter) -> Result:
    """Train a robust classifier; leave it, its card, curves and pictures in a run folder."""
    from funcrobust.commands.cure_train.recipe import cure_train

    return cure_train(options, reporter)
