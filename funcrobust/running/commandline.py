"""From a class of options to a command: its flags, its help, one line for what cannot be read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import CoercionError, RepeatArgumentError, UnusedCliTokensError

from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.running.option import Option, options_of, written_number
from funcrobust.running.options import Options, command_name

_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def command(cls: type[Options], about: str, words: Sequence[str] = ()) -> App:
    """Return the command whose call gives the options: an instance of ``cls``.

    ``about`` heads its help. ``words`` are those that follow the command's name: a preset that they
    name is the one whose values the help shows as defaults.
    """
    beneath = cls.beneath(_first_look(cls, words)) if cls.chosen_by else {}
    if cls.chosen_by:
        about += f"\n\nThe defaults shown are those of --{cls.chosen_by} {beneath[cls.chosen_by]}."
    return _app(cls, beneath, about)


def explained(error: CycloptsError) -> FuncrobustError:
    """Say in one line what could not be read."""
    if isinstance(error, CoercionError) and error.token and error.argument:
        choices: Any = error.argument.parameter.choices
        if choices:
            return unknown_name(error.argument.name, error.token.value, choices)
    if isinstance(error, UnusedCliTokensError):
        return FuncrobustError(f"no place for {' '.join(error.unused_tokens or [])} (see --help)")
    if isinstance(error, RepeatArgumentError) and error.token:
        flag = error.token.keyword
        return FuncrobustError(f"{flag} is there twice, or beside its opposite: say one of them")
    said = str(error)
    return FuncrobustError(f"{said[:1].lower()}{said[1:]} (see --help)")


def _app(cls: type[Options], beneath: Mapping[str, Any], about: str, **more: Any) -> App:
    fields = options_of(cls)

    def options(*places: Any, **flags: Any) -> Options:
        names = (name for name, option in fields.items() if option.positional)
        said = dict(zip(names, places, strict=False)) | flags
        return cls.filled({
            name: value if isinstance(value, bool | None) else fields[name].read(value)
            for name, value in said.items()
        })  # fmt: skip

    helps = _helps(cls)
    parameters = [
        _parameter(option, beneath.get(name, option.default), helps.get(name, ""), cls)
        for name, option in fields.items()
    ]
    options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(parameters, key=lambda parameter: parameter.kind)
    )
    app = App(name=command_name(cls), help=about, **more)
    app.default(options)
    return app


def _parameter(option: Option, default: Any, help: str, cls: type[Options]) -> inspect.Parameter:
    """Return a parameter that takes the words said; `Option.read` makes a value of them."""
    kind: Any = bool if option.kind is bool else str
    if option.several is not None:
        kind = tuple[str, ...] if option.positional else list[str]
    names = option.choices if option.several is dict else option.examples
    if names:
        help = f"{help} [names: {', '.join(names)}]"
    shown = _shown(option, default)
    about = Parameter(
        name=None if option.positional else option.flags,
        negative=option.off if option.has_off else (),
        help=help,
        choices=None if option.several is dict else option.choices or None,
        metavar="NAME=NUMBER" if option.several is dict else _METAVARS.get(option.kind),
        show_default=(lambda _: shown) if shown else False,
        # -1/255 is a value, if a bad one; a misspelt --flag is no file's name.
        allow_leading_hyphen=option.kind is not bool and not option.positional,
    )
    none = default is None or (option.optional and option.has_off)
    annotation: Any = Annotated[kind | None if none else kind, about]
    place: Any = inspect.Parameter.POSITIONAL_ONLY
    if not option.positional:
        place = inspect.Parameter.KEYWORD_ONLY
        heading = (inspect.getdoc(option.owner) or "").partition("\n")[0].rstrip(".")
        group = Group(heading, sort_key=cls.__mro__.index(option.owner))
        annotation = Annotated[annotation, Parameter(group=group)]
    empty = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(option.name, place, default=empty, annotation=annotation)


def _shown(option: Option, default: Any) -> str:
    if default is MISSING or default is None or default in ((), {}):
        return ""
    if option.kind is bool:
        return option.flag if default else option.off
    return written_number(default) if option.kind is float else str(default)


def _helps(cls: type[Options]) -> dict[str, str]:
    """Return the docstrings under the fields: their first paragraphs, the rest is for readers."""
    return {
        parameter.arg_name: " ".join((parameter.description or "").partition("\n\n")[0].split())
        for each in reversed(cls.__mro__[:-1])
        for parameter in docstring_parser.parse_from_object(each).params
        if parameter.description
    }


def _first_look(cls: type[Options], words: Sequence[str]) -> dict[str, Any]:
    """Return what is said of the preset, and of the data and device that one is chosen by.

    The device counts as a CPU unless it is named: to look for another would take a second.
    """
    app = _app(cls, {}, "", help_flags=(), version_flags=())
    try:
        _, bound, *_ = app.parse_known_args([w for w in words if w != "--help"])
    except CycloptsError:  # raised again when the words are read in earnest
        return {"device": "cpu"}
    said = {k: v for k, v in bound.arguments.items() if k in (cls.chosen_by, "dataset", "device")}
    return {"device": "cpu"} | said
