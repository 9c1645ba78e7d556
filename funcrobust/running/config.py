"""Options as they are written down: config.json, and the command that would do the same again."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from funcrobust.core.errors import FuncrobustError, did_you_mean, require_count
from funcrobust.reading import converter, require_own_files, structured
from funcrobust.report.runs import CONFIG, METRICS, RunFolder
from funcrobust.running.catalogue import files_in
from funcrobust.running.groups import ANEW, Run, require_resumable
from funcrobust.running.option import Option, options_of
from funcrobust.running.options import Options, command_name

Some = TypeVar("Some", bound=Options)
SomeRun = TypeVar("SomeRun", bound=Run)

OF_A_SESSION = ("resume", "quiet")
"""What is said of one session of a run, and not kept."""


# --- config.json --------------------------------------------------------------------------------


def to_config(options: Options) -> dict[str, Any]:
    """Return the options as JSON can hold them, all but those of one session."""
    plain: dict[str, Any] = converter().unstructure(options)
    return {name: value for name, value in plain.items() if name not in OF_A_SESSION}


def from_config(cls: type[Some], config: Mapping[str, Any], source: object) -> Some:
    """Build options from what `to_config` gave; ``source`` is named in errors.

    Raises `FuncrobustError` for a missing or an unknown option, another type, a value that is
    refused.
    """
    fields = [name for name in options_of(cls) if name not in OF_A_SESSION]
    strange = [f"{n[:40]!r}{did_you_mean(n[:40], fields)}" for n in config if n not in fields][:9]
    missing = [repr(name) for name in fields if name not in config]
    if strange or missing:
        said = [f"it has {', '.join(strange)}"] * bool(strange)
        said += [f"it lacks {', '.join(missing)}"] * bool(missing)
        raise FuncrobustError(
            f"{source} is of another version's form: {' and '.join(said)}; start anew, or go on "
            "with the version that wrote it"
        )
    return structured(cls, dict(config), source)


def resumed(options: SomeRun) -> SomeRun:
    """Return the options of the run that ``options.resume`` names, or these if it names none.

    Raises `FuncrobustError` for a run of another command, for options given beside ``resume`` that
    are not the run's own, and for what a file may not choose and was not given.
    """
    if options.resume is None:
        return options
    cls = type(options)
    require_own_files(options.resume)
    run = RunFolder.open(options.resume)
    given = said(options)
    require_resumable(cls, given)
    command = run.record.get("command")
    if command != command_name(cls):
        raise FuncrobustError(
            f"{options.resume} is a {str(command)[:40]} run: {command_name(cls)} cannot resume it"
        )
    stored = from_config(cls, run.config, options.resume / CONFIG)
    _require_vouched(stored, given, options.resume, run.inputs)
    _require_records(run)
    return replace(stored, **given)


def said(options: Options) -> dict[str, Any]:
    """Return what was said, be it the default, and whatever differs from it.

    None is what is left out, and `dataclasses.replace`, which says every field, says none.
    """
    fields, names = options_of(type(options)), options._said
    if names.issuperset(fields):
        names = frozenset()
    values = {name: getattr(options, name) for name in fields}
    return {
        name: value
        for name, value in values.items()
        if (name in names and value is not None) or value != fields[name].default
    }


def _require_records(run: RunFolder) -> None:
    """Raise unless a run's records are numbers, of epochs and steps that are counts."""
    for record in run.metrics():
        what = f"a record in {run.file(METRICS)}"
        for name in ("epoch", "step"):
            require_count(f"the {name} of {what}", record.get(name))  # type: ignore[arg-type]
        structured(dict[str, float | None], record, what)


def _require_vouched(
    stored: Run, given: Mapping[str, Any], folder: Path, known: Collection[str]
) -> None:
    """Raise unless code and places that a run has stored are given, and as it has stored them.

    What is ``known`` by its contents may lie elsewhere by now.
    """
    options = options_of(type(stored))
    for name, value in given.items():
        if name not in (*ANEW, "resume", *known) and value != getattr(stored, name):
            said, own = (" ".join(options[name].written(v)) for v in (value, getattr(stored, name)))
            raise FuncrobustError(f"{folder} was run with {own}, not with {said}: leave it out")
    outside = _outside(stored, folder)
    if unsaid := [name for name in outside if name not in given]:
        what = " ".join(w for name in unsaid for w in options[name].written(getattr(stored, name)))
        again = _again(stored, folder, [*(name for name in ANEW if name in given), *outside], given)
        elsewhere = ", wherever it lies by now" if set(unsaid) <= set(known) else ""
        raise FuncrobustError(
            f"{folder / CONFIG} says {what}, and a file may choose neither code nor places outside "
            f"its folder: if it is yours{elsewhere}, say it again: {again}"
        )


def _outside(stored: Run, folder: Path) -> list[str]:
    options = options_of(type(stored))
    return [n for n, option in options.items() if option.outside(getattr(stored, n), folder)]


def _again(
    stored: Run, folder: Path, names: Iterable[str], given: Mapping[str, Any] | None = None
) -> str:
    """Return the command that resumes a run, with some of its options said."""
    options, given = options_of(type(stored)), given or {}
    words = [command_name(type(stored)), "--resume", str(folder)]
    for name in dict.fromkeys(names):
        words += options[name].written(given.get(name, getattr(stored, name)))
    return f"{program()} {shlex.join(words)}"


def resume_command(run: RunFolder, command: str) -> str:
    """Return the command that goes on with a run of ours."""
    cls = next(cls for cls in Run.__subclasses__() if command_name(cls) == command)
    stored = from_config(cls, run.config, run.path / CONFIG)
    return _again(stored, run.path, _outside(stored, run.path))


def resumption(run: RunFolder, path: Path | None = None) -> str:
    """Return the command that goes on with a run, which may lie elsewhere now."""
    there = RunFolder(path or run.path, run.record)
    try:
        return resume_command(there, run.record["command"])
    except (FuncrobustError, StopIteration):  # of a caller's own recipe
        return f"{program()} {run.record['command']} --resume {shlex.quote(str(there.path))}"


# --- the command --------------------------------------------------------------------------------


def as_command(options: Options, *, places: bool = False) -> str:
    """Return the command that would do the same again: what differs from the defaults.

    Where things lie (``--out``, ``--device``, ...) is a part of it only with ``places``.
    """
    words = [f"--{name} {value}" for name, value in _chosen(options).items()]
    for option, value, _ in unusual(options):
        if places or not option.where:
            words += map(shlex.quote, option.written(value))
    return " ".join([program(), command_name(type(options)), *words])


def unusual(options: Options) -> Iterator[tuple[Option, Any, Any]]:
    """Yield options that do something and differ from what stands beneath: value, usual value."""
    chosen, fields = _chosen(options), options_of(type(options))
    beneath = type(options).beneath({name: getattr(options, name) for name in fields})
    for name, option in fields.items():
        value, usual = getattr(options, name), beneath.get(name, option.default)
        if name == "model" and getattr(options, "checkpoint", None):
            usual = None  # what is left out is the checkpoint's
        if value != usual and name not in chosen and option.acts(options):
            yield option, value, usual


def _chosen(options: Options) -> dict[str, Any]:
    """Return the option that names what stands beneath the others, if there is one."""
    name = type(options).chosen_by
    return {name: getattr(options, name)} if name else {}


def trusting(options: object) -> str:
    """Return what a command must say of a run's code and data, for a file may not choose them."""
    from funcrobust.models.registry import names_code

    model: str | None = getattr(options, "model", None)
    dataset: str | None = getattr(options, "dataset", None)
    said = f" --model {shlex.quote(model)}" if model and names_code(model) else ""
    if dataset and dataset not in files_in("data/sets"):
        said += f" --dataset {shlex.quote(dataset)}"
    return said


def program() -> str:
    """Return how this program is called from the current folder."""
    return "python cli.py" if Path("cli.py").is_file() else "funcrobust"
