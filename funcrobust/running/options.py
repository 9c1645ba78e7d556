"""What an option is: a field of a frozen dataclass, with its type, default, range and help.

A command's options are one such class, and all else comes from its fields: the command line and
its help (`commandline`), config.json and resumption (`config`), the checks here, and the call in
Python, ``run(CureTrain(h=3), reporter)``. Options that exist are valid::

    lam: Annotated[float, Ge(0), Flag("--lambda"), only_with(delta=...)] = 1.0
    \"\"\"Weight of CURE.\"\"\"

Types are int, float (on the command line also a fraction, 8/255), str, bool, Path, a Literal of
strings, ``tuple[str, ...]``, ``tuple[Path, ...]`` and ``dict[str, float]`` (NAME=VALUE, again and
again); each may be ``| None``. A field that is not keyword-only has no flag but a place.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt

from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.reading import user_path

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]
LARGEST = 1e30
"""Of numbers: their squares and products are numbers, too."""


# --- what a field may say of itself, besides its type and range ---------------------------------


class Flag:
    """The names on the command line, where they are not the field's own.

    ``off`` is the flag for False; for an option that is not a bool, the flag for None.
    """

    def __init__(self, *names: str, off: str | None = None) -> None:
        self.names = names
        self.off = off


@dataclass(frozen=True)
class Choices:
    """A text (or a name in a dict) is one of these; a function is asked when they are wanted.

    Where they are not ``all_there_is`` the help names them, and others may be said.
    """

    names: Iterable[str] | Callable[[], Iterable[str]]
    all_there_is: bool = True

    def all(self) -> tuple[str, ...]:
        """Return them."""
        return tuple(self.names() if callable(self.names) else self.names)


@dataclass(frozen=True)
class Spelled:
    """``check(text)`` raises for a text or a path that is not of its form."""

    check: Callable[[str], object]


@dataclass(frozen=True)
class Acts:
    """The option does something only while ``when(options)``; ``needs`` says what that takes."""

    when: Callable[[Any], bool]
    needs: Callable[[Any], str]


@dataclass(frozen=True)
class Vouched:
    """A file may not choose it by itself: a run is resumed with it only if it is said again.

    ``outside(value, folder)`` tells so of a value that the run in ``folder`` has stored.
    """

    outside: Callable[[Any, Path], bool]


@dataclass(frozen=True)
class Lies:
    """``check(value)`` raises unless the place is as it must be: there, or to be written."""

    check: Callable[[Any], object]


class Where:
    """The option says where, not what: a command that does the same again leaves it out."""


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


def require_once(flag: str, values: Sequence[Any]) -> None:
    """Raise for a value that is there twice: of two, one would do nothing."""
    for value in values:
        if values.count(value) > 1:
            text = written_number(value) if isinstance(value, float) else str(value)
            raise FuncrobustError(f"{flag} {text} is there twice: say it once")


# --- options ------------------------------------------------------------------------------------


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


# --- what a field says --------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A field of an `Options` class, and what it says of itself."""

    name: str
    kind: type
    """int, float, str, bool or Path."""
    several: type | None
    """tuple, or dict by name, where there may be several."""
    optional: bool
    default: Any
    """MISSING where there is none."""
    positional: bool
    marks: tuple[Any, ...]
    owner: type[Options]
    """The class that introduced it: the heading it stands under."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names on the command line, the chief one first."""
        own = ("--" + self.name.replace("_", "-"),)
        return next((m.names for m in self.marks if isinstance(m, Flag) and m.names), own)

    @property
    def flag(self) -> str:
        """What errors call it."""
        return self.name.upper() if self.positional else self.flags[0]

    @property
    def off(self) -> str:
        """The flag that says False, or None."""
        given = next((m.off for m in self.marks if isinstance(m, Flag)), None)
        return given or f"--no-{self.flags[0][2:]}"

    @property
    def has_off(self) -> bool:
        """Whether there is such a flag."""
        return self.kind is bool or any(isinstance(m, Flag) and m.off for m in self.marks)

    @property
    def choices(self) -> tuple[str, ...]:
        """All that a text may be; nothing if that cannot be listed."""
        return self._named(True)

    @property
    def examples(self) -> tuple[str, ...]:
        """Some of what a text may be."""
        return self._named(False)

    def _named(self, all_there_is: bool) -> tuple[str, ...]:
        found = (m for m in self.marks if isinstance(m, Choices) and m.all_there_is == all_there_is)
        return next((m.all() for m in found), ())

    @property
    def where(self) -> bool:
        """Whether it says where, not what."""
        return any(isinstance(m, Where) for m in self.marks)

    def outside(self, value: Any, folder: Path) -> bool:
        """Whether a run in the folder may have such a value only if a person says it, too."""
        marks = (mark for mark in self.marks if isinstance(mark, Vouched))
        return value is not None and any(mark.outside(value, folder) for mark in marks)

    @property
    def vouched(self) -> bool:
        """Whether there are such values."""
        return any(isinstance(mark, Vouched) for mark in self.marks)

    def acts(self, options: Any) -> bool:
        """Whether the option does anything beside these."""
        return all(m.when(options) for m in self.marks if isinstance(m, Acts))

    def require_acting(self, options: Any) -> None:
        """Raise for an option that does nothing beside these."""
        if options.unread:
            return
        for mark in self.marks:
            if isinstance(mark, Acts) and not mark.when(options):
                raise FuncrobustError(f"{self.flag} does nothing here: {mark.needs(options)}")

    def require_word(self, value: Any, beneath: Any) -> None:
        """Raise for None in place of a preset's value where no command could say it."""
        if value is None and beneath is not None and (self.kind is bool or not self.has_off):
            raise FuncrobustError(
                f"{self.flag} cannot be None over the preset's {beneath!r}: no flag says so; "
                "give a value, or take another preset"
            )

    def read(self, said: str | list[str]) -> Any:
        """Return the value that the command line says."""
        if self.several is dict:
            pairs = [text.partition("=")[::2] for text in said]
            if not all(name and text for name, text in pairs):
                raise self.refusal(" ".join(said))
            require_once(self.flag, [name for name, _ in pairs])
            return {name: self._read_one(text) for name, text in pairs}
        if self.several is tuple:
            return tuple(self._read_one(text) for text in said)
        assert isinstance(said, str)
        return self._read_one(said)

    def _read_one(self, text: str) -> Any:
        if not text:  # the current folder, to pathlib
            raise self.refusal(text)
        try:
            readers = {float: read_number, Path: user_path}
            return readers.get(self.kind, self.kind)(text)
        except (ValueError, ZeroDivisionError):
            raise self.refusal(text) from None

    def written(self, value: Any) -> list[str]:
        """Return the words that say the value on the command line."""
        if self.kind is bool:
            return [self.flag if value else self.off]
        if value is None:
            return [self.off]
        texts = (
            [f"{name}={written_number(number)}" for name, number in value.items()]
            if self.several is dict
            else [
                written_number(one) if self.kind is float else str(one)
                for one in (value if self.several else (value,))
            ]
        )
        return texts if self.positional else [w for text in texts for w in (self.flag, text)]

    def check(self, value: Any) -> None:
        """Raise unless the value has the type and is in range."""
        if value is MISSING:
            raise FuncrobustError(f"{self.flag} is missing")
        if value is None and self.optional:
            return
        if self.several is not None and not isinstance(value, self.several):
            raise self.refusal(value)
        if self.several is dict:
            for name in value:
                self._check_text(name)
        for one in value.values() if self.several is dict else value if self.several else (value,):
            self._check_one(one)

    def _check_one(self, value: Any) -> None:
        kinds: Any = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            raise self.refusal(value)
        if self.kind in (str, Path):
            self._check_text(str(value))
        if self.kind in (int, float):
            most = 2**63 - 1 if self.kind is int else LARGEST
            if not (abs(value) <= most and all(test(value, n) for _, test, n in self._bounds())):
                raise self.refusal(value)

    def _check_text(self, value: str) -> None:
        if not value or "\0" in value:
            raise self.refusal(value)
        if self.choices and value not in self.choices:
            raise unknown_name(self.flag, value, self.choices)
        for mark in self.marks:
            if isinstance(mark, Spelled):
                mark.check(value)

    def refusal(self, value: Any) -> FuncrobustError:
        """Build the error for a value of another type, or out of range."""
        large = isinstance(value, int) and abs(value) >= 2**63
        words = {
            int: "a whole number below 2^63" if large else "a whole number",
            float: f"a number of at most {LARGEST:g}" if _is_large(value) else "a finite number",
            str: "a text that is not empty", bool: "true or false",
            Path: "a path",
        }  # fmt: skip
        bounds = " and ".join(f"{sign} {bound}" for sign, _, bound in self._bounds())
        expected = f"{words[self.kind]} {bounds}".rstrip()
        if self.several is not None:
            expected = f"{'NAME=VALUE' if self.several is dict else 'several'}, each {expected}"
        found = repr(value)
        found = found if len(found) <= 80 else f"{found[:80]}..."
        return FuncrobustError(f"{self.flag} must be {expected}, got {found}")

    def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], Any]]:
        return [
            (*_TESTS[type(mark)], getattr(mark, type(mark).__name__.lower()))
            for mark in self.marks
            if type(mark) in _TESTS
        ]


_TESTS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Ge: (">=", operator.ge), Gt: (">", operator.gt), Le: ("<=", operator.le),
    Lt: ("<", operator.lt),
}  # fmt: skip


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) > LARGEST


def read_number(text: str) -> float:
    """Read "0.031" or "8/255"."""
    top, slash, bottom = text.partition("/")
    return float(top) / float(bottom) if slash else float(top)


def written_number(number: float) -> str:
    """Write a number so that `read_number` gives it back: 8/255 rather than 0.03137254901960784."""
    levels = round(255 * number) if math.isfinite(255 * number) else 0
    texts = (f"{number:g}", f"{levels}/255")
    return next((text for text in texts if read_number(text) == number), repr(number))


def options_of(cls: type[Options]) -> dict[str, Option]:
    """Return a class's options by name, in the order of its fields."""
    key: Any = cls  # mypy thinks that a dataclass cannot be hashed
    return _of(key)


@cache
def _of(cls: Any) -> dict[str, Option]:
    hints = get_type_hints(cls, include_extras=True)
    owners = {name: c for c in cls.__mro__ for name in inspect.get_annotations(c)}
    found = {}
    for field in dataclasses.fields(cls):
        kind, marks = _unwrapped(hints[field.name])
        optional = get_origin(kind) in (Union, UnionType)
        if optional:
            (inner,) = (a for a in get_args(kind) if a is not NoneType)
            kind, more = _unwrapped(inner)
            marks += more
        several = get_origin(kind)
        if several is Literal:
            kind, several, names = str, None, get_args(kind)
            marks += (Choices(names),)
        elif several is not None:
            kind, more = _unwrapped(get_args(kind)[-1 if several is dict else 0])
            marks += more
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        found[field.name] = Option(
            field.name, kind, several, optional, default, not field.kw_only, marks,
            owners[field.name],
        )  # fmt: skip
    return found


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take a type's marks off."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        return kind, tuple(marks)
    return hint, ()
