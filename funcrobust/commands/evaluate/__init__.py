"""Measure accuracy, clean and under attack, and say whether the figure can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funcrobust.commands.evaluate.options import Evaluate

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter

__all__ = ["Evaluate", "run"]


def run(options: Evaluate, reporter: Reporter) -> dict[str, Any]:
    """Measure; show tables and a verdict, write JSON if asked; return the figures.

    The threat model is the one the checkpoint was trained against, unless given.
    """
    from funcrobust.commands.evaluate.recipe import evaluate

    return evaluate(options, reporter)
