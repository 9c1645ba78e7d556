"""Draw with a robust classifier: applications of ψ, each with a picture and a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funcrobust.commands.apply.options import Apply

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter

__all__ = ["Apply", "run"]


def run(options: Apply, reporter: Reporter) -> dict[str, dict[str, float]]:
    """Run one application; write its picture, show its numbers beside the baseline's."""
    from funcrobust.commands.apply.recipe import apply

    return apply(options, reporter)
