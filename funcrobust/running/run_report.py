"""A run's own page, ``report.html``: gathered from its folder, renewed while the run goes on.

All that is shown comes from files, in which nothing is believed: what is not of its form is left
out, and said to be. A page that cannot be written is a warning, once; it never stops a run.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.environment import own_version
from funcrobust.reading import LARGEST_TEXT, parse_json, read_file, structured
from funcrobust.report import run_page
from funcrobust.report.console import Reporter
from funcrobust.report.html import PNG, Mark, colophon
from funcrobust.report.panels import Line, Panel, series
from funcrobust.report.records import Record, figure, is_share, percent
from funcrobust.report.run_page import Evaluated, OptionRow, Picture, RunPage
from funcrobust.report.runs import CONFIG, EVALUATION_PAGE, REPORT, RunFolder, Status
from funcrobust.running.catalogue import Function, attacks, function, functions
from funcrobust.running.config import (
    OF_A_SESSION,
    as_command,
    from_config,
    program,
    resumption,
    trusting,
    unusual,
)
from funcrobust.running.groups import Run
from funcrobust.running.option import Option, options_of, written_number
from funcrobust.running.options import command_name
from funcrobust.running.processes import processes
from funcrobust.running.threat import written_threat

EVALUATION = "evaluation.json"
"""The figures of a run's last evaluation."""

PICTURES, LARGEST_PICTURE = 6, 3 * 2**20
"""How many pictures a page shows at most, and the bytes of one."""

PANELS, LINES = 12, 8
"""How many panels of curves at most, and of lines in one."""

COLOURS = {"clean": 0, "robust": 1, "accuracy": 2, "attacked": 2, "worst": 3}


# --- while it goes on -----------------------------------------------------------------------------


class RunReport:
    """Keeps the page of a run that this process holds."""

    def __init__(self, run: RunFolder, options: Run, steps: int, reporter: Reporter) -> None:
        self._run, self._steps, self._reporter = run, steps, reporter
        self._kind = type(options)
        self._every, self._last, self._warned = options.save_every, -float("inf"), False

    def renew(self, step: int, left: str) -> None:
        """Write the page of a run under way, unless the last is younger than ``--save-every``."""
        if time.monotonic() - self._last < self._every:
            return
        done = f"Update {step} of {self._steps} ({step / self._steps:.0%})"
        self._write(
            Live("running", f"{done}{', ' * bool(left)}{left}.", max(1, round(self._every)))
        )
        self._last = time.monotonic()

    def end(self, status: Status, step: int) -> None:
        """Write the page of a run that is complete, or that was interrupted."""
        stopped = f"At update {step} of {self._steps}; it can be resumed."
        self._write(Live(status, stopped, 0) if status == "interrupted" else None)

    def _write(self, live: Live | None) -> None:
        if not processes().first:
            return
        try:
            renew(self._run, [self._kind], live)
        except Exception as error:  # of a template, of a damaged picture: the run goes on
            if not self._warned:
                self._reporter.warn(f"{REPORT} is not up to date: {one_line(error)}")
            self._warned = True


@dataclass(frozen=True)
class Live:
    """What the process that holds a run knows of it, and no file says."""

    state: str
    meaning: str
    renewed_every: int
    """Seconds; 0: not again."""


def renew(run: RunFolder, kinds: Sequence[type[Run]], live: Live | None = None) -> None:
    """Write the page anew; without ``live`` that of a complete run alone.

    ``kinds`` are the classes of options that a run may have: of its command's name.

    Raises `FuncrobustError` where it cannot be written.
    """
    if live is None and run.result() is None:
        return
    page = gather(run, kinds, live)
    run.require_there()
    run_page.write(page, own_file(run, REPORT))


def own_file(run: RunFolder, name: str) -> Path:
    """Return the path of a file to write in a run, which need not be ours.

    Raises `FuncrobustError` for a link: what it leads to would be overwritten.
    """
    path = run.file(name)
    if path.is_symlink():
        raise FuncrobustError(f"{path} is a link, which may lead anywhere: it is not written")
    return path


# --- what it shows --------------------------------------------------------------------------------


def gather(run: RunFolder, kinds: Sequence[type[Run]], live: Live | None = None) -> RunPage:
    """Gather what the page shows; see `renew`."""
    result, options = run.result(), options_in(run, kinds)
    records, damage = records_of(run)
    state, meaning, mark = _state(result, records, live)
    chosen = options.chosen_by if options else None
    figures, note = figures_of(result, records)
    return RunPage(
        title=f"{run.record.get('command')} {run.path.name}",
        state=state, meaning=meaning, mark=mark,
        renewed_every=max(5, min(live.renewed_every, 600)) if live and live.renewed_every else 0,
        beneath=f"--{chosen} {getattr(options, chosen)}" if options and chosen else "",
        differing=differing(options) if options else [],
        options=rows_of(run, options),
        figures={name: said(name, value) for name, value in figures.items()},
        figures_note=f"{note}{damage}",
        evaluation=_evaluated(evaluation_of(run)),
        panels=panels({"": records}), pictures=pictures(run),
        commands=_commands(run, options, ended=result is not None),
        facts=_facts(run), cite=_cite(), papers=_papers(options) if options else [],
        made=colophon(),
    )  # fmt: skip


def _state(
    result: Record | None, records: Sequence[Record], live: Live | None
) -> tuple[str, str, Mark]:
    if live is not None:
        again = (
            " This page asks for its next version by itself. If its time, below, stands still, the "
            "run has ended: resume it."
        )  # fmt: skip
        return live.state, live.meaning + again * bool(live.renewed_every), "open"
    step = (result or {}).get("step", records[-1].get("step", 0) if records else 0)
    if result is None:
        return "unfinished", f"The last record is of update {step}.", "open"
    status = str(result.get("status"))
    return status, f"After {step} updates.", "good" if status == "finished" else "bad"


def options_in(run: RunFolder, kinds: Sequence[type[Run]]) -> Run | None:
    """Return a run's options, if it is of one of these kinds, and of this version."""
    command = run.record.get("command")
    for cls in kinds:
        if command_name(cls) == command:
            with suppress(FuncrobustError):
                return from_config(cls, run.config, run.path / CONFIG)
    return None


def differing(options: Run) -> list[OptionRow]:
    """Return the options that differ from what stands beneath them: a preset's values."""
    return [
        OptionRow(option.flag, said_option(value), said_option(usual))
        for option, value, usual in unusual(options)
        if not option.where
    ]


def rows_of(run: RunFolder, options: Run | None) -> list[OptionRow]:
    """Return all options, as the file has them where they are not of this version's form."""
    if options is None:
        return [OptionRow(n[:80], json.dumps(v)[:400]) for n, v in list(run.config.items())[:200]]
    return [
        OptionRow(option.flag, said_option(getattr(options, name)))
        for name, option in _kept(options).items()
    ]


def _kept(options: Run) -> dict[str, Option]:
    return {n: o for n, o in options_of(type(options)).items() if n not in OF_A_SESSION}


def said_option(value: Any) -> str:
    """Write an option's value for a person."""
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}={said_option(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(said_option, value)) or "none"
    if isinstance(value, float):
        exact = written_number(value)
        return exact if len(exact) <= 12 else f"{value:.6g}"  # config.json has all digits
    return str(value)


def records_of(run: RunFolder) -> tuple[list[Record], str]:
    """Return a run's records of numbers; and what is to be said of damage, if there is any."""
    try:
        records = run.metrics()
    except FuncrobustError as error:
        return [], f" {error}."
    return [{k: v for k, v in r.items() if not isinstance(v, str)} for r in records], ""


def figures_of(result: Record | None, records: Sequence[Record]) -> tuple[dict[str, float], str]:
    """Return the final figures, or else the newest of each in the records; and which they are."""
    with suppress(FuncrobustError):
        if result is not None:
            found = structured(dict[str, float | None], result.get("metrics"), "figures")
            if found:
                return _numbers(found), "When the training had ended."
    if not records:
        return {}, ""
    newest = {k: v for record in records for k, v in record.items() if k not in ("epoch", "step")}
    since = [r.get("step") for r in records if newest.keys() & r.keys() - records[-1].keys()]
    older = f"; what it lacks at update {since[-1]}" if since else ""
    return _numbers(newest), f"In the last record, at update {records[-1].get('step')}{older}."


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
    return dict(list(numbers.items())[:40])


def said(name: str, value: float) -> str:
    """Write a figure for a person."""
    return figure(value, is_share(name))


# --- evaluation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What is shown of `EVALUATION`."""

    verdict: str | None
    because: tuple[str, ...]
    not_tried: tuple[str, ...]
    clean: float
    robust: float
    robust_interval: tuple[float, ...]
    examples: int
    attacks: tuple[str, ...]
    constraint: str
    epsilon: float


def evaluation_of(run: RunFolder) -> Evaluation | None:
    """Return a run's last evaluation, if there is one of that form."""
    path = run.path / EVALUATION
    try:
        found = structured(Evaluation, parse_json(read_file(path, most=LARGEST_TEXT), path), path)
    except FuncrobustError:
        return None
    return found if len(found.robust_interval) == 2 else None


def _evaluated(found: Evaluation | None) -> Evaluated | None:
    if found is None:
        return None
    low, high = found.robust_interval
    text = (
        f"{percent(found.robust)} ({100 * low:.1f} to {percent(high)}) of {found.examples} "
        f"test images withstand {', then '.join(found.attacks)} at "
        f"{written_threat(found.constraint, found.epsilon)}; {percent(found.clean)} without an "
        f"attack. {EVALUATION_PAGE} has the rest."
    )
    because = found.because or tuple(f"not tried: {name}" for name in found.not_tried)
    mark = run_page.VERDICTS.get(found.verdict, "none")
    return Evaluated(found.verdict or "no verdict", text, because[:20], mark)


# --- curves and pictures --------------------------------------------------------------------------


class _Series(NamedTuple):
    run: str
    metric: str
    points: list[tuple[float, float]]


def panels(runs: Mapping[str, Sequence[Record]]) -> list[Panel]:
    """Return panels of all metrics: shares together, others by the last word of their names.

    Of several runs, by their names: a panel for each metric that all have, a colour a run.
    """
    across, grouped = "step", dict[str, list[_Series]]()
    alone = len(runs) == 1
    for run, records in runs.items():
        names = dict.fromkeys(name for record in records for name in record)
        for name in list(names)[:200]:
            points = series(records, name, across)
            if name in ("epoch", across) or name.endswith("_before") or not points:
                continue
            group = "accuracy" if is_share(name) else name.rpartition("_")[2]
            group = group if alone else name
            grouped.setdefault(group, []).append(_Series(run, name, points))
    common = {group: found for group, found in grouped.items() if len(found) == len(runs)}
    if not alone and common:
        grouped = common
    found = [_panel(group, several, list(runs)) for group, several in grouped.items()]
    return sorted(found, key=lambda panel: panel.percent, reverse=True)[:PANELS]


def _panel(group: str, several: Sequence[_Series], runs: Sequence[str]) -> Panel:
    alone = len(runs) == 1
    lines = []
    for place, (run, metric, points) in enumerate(several[:LINES]):
        word = metric.rpartition("_")[2]
        colour = COLOURS.get(word, place % 4) if alone else runs.index(run) % 4
        dashed = metric.startswith("train_") if alone else runs.index(run) % 2 == 1
        name = metric.replace("_", " ") if alone else run
        lines.append(Line(name[:60], points, colour, dashed))
    metrics = {metric for _, metric, _ in several}
    title = metrics.pop() if len(metrics) == 1 else group
    return Panel(title.replace("_", " ")[:60], "update", lines, is_share(several[0].metric))


def pictures(run: RunFolder) -> list[Picture]:
    """Return the pictures of a run, or the newest of its strips; a link is not followed."""
    strips = run.path / "strips"
    newest = sorted(strips.glob("*.png"))[-1:] if not strips.is_symlink() else []
    found = list[Picture]()
    final = [path for path in sorted(run.path.glob("*.png")) if path.name != "curves.png"]
    for path in final or newest:
        if path.is_symlink() or len(found) == PICTURES:
            continue
        with suppress(FuncrobustError):
            content = read_file(path, most=LARGEST_PICTURE)
            if content.startswith(PNG):
                name = path.relative_to(run.path).as_posix()
                found.append(Picture(name, content, f"{path.stem.replace('_', ' ')} of this run"))
    return found


# --- around it ------------------------------------------------------------------------------------


def _commands(run: RunFolder, options: Run | None, *, ended: bool) -> dict[str, str]:
    found = {}
    if not ended:
        found["Resume it:"] = resumption(run)
    if options is not None:
        found["Reproduce it:"] = as_command(options)
    folder, code = shlex.quote(str(run.path)), trusting(options)
    found["Evaluate it:"] = f"{program()} evaluate {folder}{code}"
    found["Compare it with another:"] = f"{program()} runs {folder} OTHER"
    return found


def _facts(run: RunFolder) -> dict[str, str]:
    record = run.record
    facts = {name: str(record.get(name))[:400] for name in ("created", "seed", "device")}
    versions = record.get("versions")
    if isinstance(versions, dict):
        facts["versions"] = ", ".join(f"{k} {v}" for k, v in list(versions.items())[:40])
    return {**facts, "folder": str(run.path)}


def _cite() -> list[str]:
    return [
        "@software{funcrobust,",
        "  title   = {funcrobust: functional adversarial robustness for PyTorch},",
        f"  version = {{{own_version()}}},",
        "}",
    ]


def _papers(options: Run) -> list[str]:
    """Return the papers that the docstrings of what was trained with name."""
    known = attacks() | functions("core.regularisers", "Loss")
    names = [str(getattr(options, "attack", "")), *getattr(options, "regularisers", {})]
    names += ["cure"] * bool(getattr(options, "curvature", False))
    used: dict[str, Function | None] = {name: known.get(name) for name in names}
    if getattr(options, "trades", None) is not None:
        used["TRADES"] = function("core.objectives.algebra", "trades")
    found = []
    for name, one in used.items():
        paper = re.search(r"arXiv:(\d{4}\.\d{5})", one.about) if one else None
        if paper:
            found.append(f"{name}, arXiv:{paper[1]}")
    return found
