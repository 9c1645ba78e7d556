"""Measure what psi-training does to generated images, variant by variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funcrobust.commands.study.options import Study

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter

__all__ = ["Study", "run"]


def run(options: Study, reporter: Reporter) -> dict[str, list[Any]]:
    """Transfer, score and compare; leave study.json and two plots in ``options.out``."""
    from funcrobust.commands.study.recipe import study

    return study(options, reporter)
