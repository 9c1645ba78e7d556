"""List the runs that are there as a table, or compare two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funcrobust.commands.runs.options import Runs

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter

__all__ = ["Runs", "run"]


def run(options: Runs, reporter: Reporter) -> dict[str, Any]:
    """Show all runs, or what two of them have and have not in common; return the figures."""
    if options.folders:
        from funcrobust.commands.runs.comparing import compare

        return compare(options, reporter)
    from funcrobust.commands.runs.listing import list_all

    return list_all(options, reporter)
