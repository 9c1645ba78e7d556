"""All runs of a folder as a table, a broken one in one line of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from funcrobust.commands.runs.options import Runs
from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.reading import unreadable
from funcrobust.report.console import Reporter
from funcrobust.report.records import write_json
from funcrobust.report.runs import CONFIG, METRICS, RESULT, RunFolder
from funcrobust.running.places import say_replaced
from funcrobust.running.run_report import evaluation_of, figures_of, records_of

NAMES = {
    "clean": ("clean", "test_clean"), "robust": ("worst", "test_worst"),
    "drift": ("drift", "heldout_drift"),
}  # fmt: skip
"""What a column is called in results, and in records."""


@dataclass(frozen=True)
class Summary:
    """A run in a line; what it has not is None."""

    name: str
    command: str | None = None
    dataset: str | None = None
    status: str | None = None
    clean: float | None = None
    robust: float | None = None
    """Under the strongest attack of the run's own."""
    drift: float | None = None
    verdict: str | None = None
    """Of its last evaluation, and the robust accuracy that was found there."""
    evaluated: float | None = None
    date: str | None = None
    """ISO 8601, when it was begun."""
    error: str | None = None
    """Why it cannot be read."""


def list_all(options: Runs, reporter: Reporter) -> dict[str, Any]:
    """Show a table of all runs in ``--out``, the oldest first."""
    say_replaced(options.json_file, reporter)
    found = summaries(options.out)
    if options.json_file is not None:
        write_json(options.json_file, {"runs": [asdict(one) for one in found]})
    if not found:
        reporter.say(f"no runs in {options.out}: cure-train makes one, --out says where they are")
        return {"runs": []}
    columns, rows = table(found)
    reporter.table(f"{len(found)} runs in {options.out}", columns, rows)
    for one in found:
        if one.error is not None:
            reporter.warn(one.error)
    return {"runs": [asdict(one) for one in found]}


def summaries(out: Path) -> list[Summary]:
    """Return the runs of a folder, the oldest first; of none there is, none."""
    try:
        paths = list(out.iterdir()) if os.path.lexists(out) else []
    except OSError as error:
        raise unreadable(out, error) from error
    return sorted((summary(path) for path in paths if _is_run(path)), key=_age)


def _is_run(path: Path) -> bool:
    hidden = path.name.startswith(".")  # one that is being made
    return not hidden and any(os.path.lexists(path / name) for name in (CONFIG, METRICS, RESULT))


def _age(one: Summary) -> tuple[str, str]:
    return (one.date or "", one.name)


def summary(path: Path) -> Summary:
    """Summarise a run; what cannot be read is said in its `error`."""
    try:
        run = RunFolder.open(path)
        records, damage = records_of(run)
        if damage:
            raise FuncrobustError(damage.strip().rstrip("."))
    except FuncrobustError as error:
        return Summary(path.name, error=str(error))
    result, evaluation = run.result(), evaluation_of(run)
    figures, _ = figures_of(result, records)
    clean, robust, drift = (
        next((figures[name] for name in names if name in figures), None) for names in NAMES.values()
    )
    return Summary(
        path.name, command=_text(run.record.get("command")),
        dataset=_text(run.config.get("dataset")),
        status=_text(result.get("status")) if result else "unfinished",
        date=_text(run.record.get("created")),
        verdict=(evaluation.verdict or "no verdict") if evaluation else None,
        evaluated=evaluation.robust if evaluation else None, clean=clean,
        robust=robust, drift=drift,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def table(found: list[Summary]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows.

    What a run's name says already is not said again, and columns that no run fills are left out.
    """

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    def row(one: Summary) -> dict[str, str]:
        drift = "" if one.drift is None else f"{one.drift:.3g}"
        state = "broken" if one.error else one.status or ""
        if state == "finished" and one.evaluated is not None:
            state = f"{share(one.evaluated)} {one.verdict}"
        command, date = one.command or "", one.date or ""
        return {
            "run": one.name, "command": "" if command in one.name else command,
            "dataset": _brief(one.dataset), "clean": share(one.clean), "robust": share(one.robust),
            "drift": drift, "state": state,
            "date": "" if date[:10].replace("-", "") in one.name else date[5:16].replace("T", " "),
        }  # fmt: skip

    rows = [row(one) for one in found]
    columns = [name for name in rows[0] if name == "run" or any(row[name] for row in rows)]
    return columns, [[row[name] for name in columns] for row in rows]


def _brief(dataset: str | None) -> str:
    """Return a dataset's name, or the last part of its path."""
    return visible(Path(dataset).name or dataset) if dataset else ""
