"""Transfer a robust classifier by ψ's exact derivative, so that ψ draws: it learns to restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funcrobust.commands.psi_train.options import PsiTrain

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter
    from funcrobust.running.holding import Result

__all__ = ["PsiTrain", "run"]


def run(options: PsiTrain, reporter: Reporter) -> Result:
    """Minimise w·‖x − ψ(s; θ)‖² + δ·‖z − ψ(z; θ)‖² + μ·anchor; report and picture both ends."""
    from funcrobust.commands.psi_train.recipe import psi_train

    return psi_train(options, reporter)
