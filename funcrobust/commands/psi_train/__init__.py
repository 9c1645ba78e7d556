"""Transfer a robust classifier: minimise how far ψ moves images, by its exact derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funcrobust.commands.psi_train.options import PsiTrain

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter
    from funcrobust.running.loop import Result

__all__ = ["PsiTrain", "run"]


def run(options: PsiTrain, reporter: Reporter) -> Result:
    """Minimise δ·‖x − ψ(x; θ)‖² + μ·anchor; report and picture before and after."""
    from funcrobust.commands.psi_train.recipe import psi_train

    return psi_train(options, reporter)
