"""Options as they are written down: config.json, and the command that would do the same again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import cattrs

from funcrobust.core.errors import FuncrobustError, did_you_mean
from funcrobust.report.runs import RunFolder
from funcrobust.running.groups import Run, require_resumable
from funcrobust.running.options import Options, command_name, options_of

Some = TypeVar("Some", bound=Options)
SomeRun = TypeVar("SomeRun", bound=Run)


# --- config.json --------------------------------------------------------------------------------


@cache
def _converter() -> cattrs.Converter:
    """Return a converter that turns no type into another on the way back."""
    converter = cattrs.Converter(detailed_validation=True)

    def strictly(value: Any, kind: type) -> Any:
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        return kind(value)

    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, strictly)
    converter.register_structure_hook(Path, lambda value, _: Path(strictly(value, str)))
    # Whether a text is one of the choices, the options themselves say.
    converter.register_structure_hook_func(_is_literal, lambda value, _: strictly(value, str))
    converter.register_unstructure_hook(Path, str)
    return converter


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def to_config(options: Options) -> dict[str, Any]:
    """Return the options as JSON can hold them, all but ``resume``."""
    plain: dict[str, Any] = _converter().unstructure(options)
    return {name: value for name, value in plain.items() if name != "resume"}


def from_config(cls: type[Some], config: Mapping[str, Any], source: object) -> Some:
    """Build options from what `to_config` gave; ``source`` is named in errors.

    Raises `FuncrobustError` for a missing or an unknown option, another type, a value that is
    refused.
    """
    fields = [name for name in options_of(cls) if name != "resume"]
    strange = [f"{n!r}{did_you_mean(n, fields)}" for n in config if n not in fields]
    missing = [repr(name) for name in fields if name not in config]
    if strange or missing:
        said = [f"it has {', '.join(strange)}"] * bool(strange)
        said += [f"it lacks {', '.join(missing)}"] * bool(missing)
        raise FuncrobustError(
            f"{source} is of another version's form: {' and '.join(said)}; start anew, or go on "
            "with the version that wrote it"
        )
    try:
        return _converter().structure(dict(config), cls)
    except cattrs.BaseValidationError as error:
        said = cattrs.transform_error(error, "options", format_exception=lambda e, _: str(e))
        raise FuncrobustError(f"{source}: {said[0].removesuffix(' @ options')}") from None


def resumed(options: SomeRun) -> SomeRun:
    """Return the options of the run that ``options.resume`` names, or these if it names none.

    Raises `FuncrobustError` for a run of another command, and for options given beside ``resume``.
    """
    if options.resume is None:
        return options
    cls, run = type(options), RunFolder.open(options.resume)
    given = {
        name: getattr(options, name)
        for name, option in options_of(cls).items()
        if getattr(options, name) != option.default
    }
    require_resumable(cls, given)
    command = run.record.get("command")
    if command != command_name(cls):
        raise FuncrobustError(
            f"{options.resume} is a {command} run: {command_name(cls)} cannot resume it"
        )
    stored = from_config(cls, run.config, options.resume / "config.json")
    return replace(stored, **given)


# --- the command --------------------------------------------------------------------------------


def as_command(options: Options, *, places: bool = False) -> str:
    """Return the command that would do the same again: what differs from the defaults.

    Where things lie (``--out``, ``--device``, ...) is a part of it only with ``places``.
    """
    cls = type(options)
    chosen = {cls.chosen_by: getattr(options, cls.chosen_by)} if cls.chosen_by else {}
    beneath = cls.beneath(chosen)
    words = [f"--{name} {value}" for name, value in chosen.items()]
    for name, option in options_of(cls).items():
        value = getattr(options, name)
        usual = value == beneath.get(name, option.default)
        left_out = usual or name in chosen or (option.where and not places)
        if not left_out and option.acts(options):
            words += map(shlex.quote, option.written(value))
    return " ".join(["python cli.py", command_name(cls), *words])


def program() -> str:
    """Return how this program is called from the current folder."""
    return "python cli.py" if Path("cli.py").is_file() else "funcrobust"
