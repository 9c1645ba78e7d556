"""A command's options: fields of a frozen dataclass, each with its type, default, range and help.

A command's options are one such class, and all else comes from its fields: the command line and
its help (`commandline`), config.json and resumption (`config`), the checks here, and the call in
Python, ``run(CureTrain(h=3), reporter)``. Options that exist are valid::

    lam: Annotated[float, Ge(0), Flag("--lambda"), only_with(delta=...)] = 1.0
    \"\"\"Weight of CURE.\"\"\"

`marks` are what a field may say of itself, `option` is how one is read, checked and written. Types
are int, float (on the command line also a fraction, 8/255), str, bool, Path, a Literal of strings,
``tuple[str, ...]``, ``tuple[Path, ...]`` and ``dict[str, float]`` (NAME=VALUE, again and again);
each may be ``| None``. A field that is not keyword-only has no flag but a place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.running.marks import Acts, Lies, Where
from funcrobust.running.option import options_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """Output.

    The options of a command: each subclass adds some; `check` is for what concerns several.
    """

    quiet: Annotated[bool, Where()] = False
    """Print warnings and errors alone, on standard error."""

    chosen_by: ClassVar[str | None] = None
    """The option, if there is one, that names what stands `beneath` the others: a preset."""
    shared: ClassVar[bool] = False
    """Whether several processes can share the work (`processes`)."""
    _said: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, *_: Any, **said: Any) -> Self:
        """Keep which fields were said: what is said is meant, also if it is the default."""
        made = object.__new__(cls)
        object.__setattr__(made, "_said", frozenset(said))
        return made

    def __post_init__(self) -> None:
        """Refuse values out of range, values that do nothing, and what `check` refuses."""
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            option.check(value)
            if value != option.default:
                option.require_acting(self)
        self._require_what_it_names()
        self.check()

    def _require_what_it_names(self) -> None:
        """Refuse a preset that is a label alone, as in ``CureTrain(preset="fast")``."""
        cls, name = type(self), self.chosen_by
        if name is None:
            return
        chosen = getattr(self, name)
        plain = {k: option.default for k, option in options_of(cls).items()}
        beneath = {k: v for k, v in cls.beneath({name: chosen}).items() if k != name}
        asked = [k for k, v in beneath.items() if v != plain[k]]
        unsaid = not self._said.intersection(asked)
        if asked and unsaid and all(getattr(self, k) == plain[k] for k in asked):
            raise FuncrobustError(
                f"these are not the values of {name} {chosen!r}: build the options with "
                f"{cls.__name__}.filled({{{name!r}: {chosen!r}, ...}})"
            )

    def check(self) -> None:
        """Refuse what does not go together."""

    def require_places(self) -> None:
        """Raise unless what is to be read is there, and what is to be written can be.

        Not a part of what valid options are: it changes. The command line asks before it begins.
        """
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            for mark in option.marks:
                if isinstance(mark, Lies) and value is not None:
                    for one in value if option.several else (value,):
                        try:
                            mark.check(one)
                        except FuncrobustError as error:
                            raise FuncrobustError(f"{option.flag}: {error}") from error

    @property
    def prints_figures(self) -> bool:
        """Whether standard output is for the figures alone."""
        return False

    @property
    def unread(self) -> bool:
        """Whether the others are in a folder that is yet to be read."""
        return False

    @classmethod
    def beneath(cls, given: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Return what stands beneath the given values: a preset's."""
        return {}

    @classmethod
    def filled(cls, given: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> Self:
        """Build from a preset (`beneath` finds one), then what is given, then the defaults.

        A value of the preset's that does nothing beside the given ones is left out; a given one is
        refused.
        """
        fields = options_of(cls)
        preset = cls.beneath(given) if preset is None else preset
        for name in (*preset, *given):
            if name not in fields:
                raise unknown_name("option", name, fields)
        defaults = {name: option.default for name, option in fields.items()}
        draft = object.__new__(cls)
        for name, value in {**defaults, **preset, **given}.items():
            fields[name].check(value)
            object.__setattr__(draft, name, value)
        for name in given:
            fields[name].require_acting(draft)
            fields[name].require_word(given[name], preset.get(name))
        idle = [name for name in preset if name not in given and not fields[name].acts(draft)]
        return cls(**{k: v for k, v in {**preset, **given}.items() if k not in idle})


def command_name(cls: type[Options]) -> str:
    """Return the name of the command that a class is the options of: PsiTrain's is psi-train."""
    return re.sub(r"(?<=.)([A-Z])", r"-\1", cls.__name__).lower()


# --- one beside another ------------------------------------------------------------------------


def only_with(**needed: Any) -> Acts:
    """Let an option act only beside another: ``only_with(start=("gaussian", "noise"), hat=...)``.

    One of the named fields (or properties) must have the value, or one of the values; ``...`` is
    any but None, False, 0, "none" and nothing.
    """

    def when(options: Any) -> bool:
        return any(_is(getattr(options, name), value) for name, value in needed.items())

    def needs(options: Any) -> str:
        return "it needs " + " or ".join(
            _said(type(options), name, value) for name, value in needed.items()
        )

    return Acts(when, needs)


def unless(**instead: Any) -> Acts:
    """Let an option act only while none of the others takes its place."""
    beside = only_with(**instead)

    def needs(options: Any) -> str:
        there = {k: v for k, v in instead.items() if _is(getattr(options, k), v)}
        places = (_said(type(options), name, value) for name, value in there.items())
        return f"{' and '.join(places)} takes its place"

    return Acts(lambda options: not beside.when(options), needs)


def _is(value: Any, wanted: Any) -> bool:
    if wanted is ...:
        return bool(value) and value != "none"
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


def _said(cls: type[Options], name: str, wanted: Any) -> str:
    fields = options_of(cls)
    if name not in fields:  # a property, which says in its docstring what it is
        about = str(getattr(cls, name).__doc__).rstrip(".")
        return about[0].lower() + about[1:]
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    flag = fields[name].flag
    if isinstance(wanted, bool):
        return flag if wanted else fields[name].off
    return flag if wanted is ... else f"{flag} {' or '.join(map(str, values))}"
