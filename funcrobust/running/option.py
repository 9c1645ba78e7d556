"""One option: a field of an `Options` class, what it says of itself, how it is read and written."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.reading import user_path
from funcrobust.running.marks import Acts, Choices, Flag, Spelled, Vouched, Where

LARGEST = 1e30
"""Of numbers: their squares and products are numbers, too."""


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
    owner: type
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
    return isinstance(value, int | float) and LARGEST < abs(value) < math.inf


def read_number(text: str) -> float:
    """Read "0.031" or "8/255"."""
    top, slash, bottom = text.partition("/")
    return float(top) / float(bottom) if slash else float(top)


def written_number(number: float) -> str:
    """Write a number so that `read_number` gives it back: 8/255 rather than 0.03137254901960784."""
    levels = round(255 * number) if math.isfinite(255 * number) else 0
    texts = (f"{number:g}", f"{levels}/255")
    return next((text for text in texts if read_number(text) == number), repr(number))


def options_of(cls: type) -> dict[str, Option]:
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


def require_once(flag: str, values: Sequence[Any]) -> None:
    """Raise for a value that is there twice: of two, one would do nothing."""
    for value in values:
        if values.count(value) > 1:
            text = written_number(value) if isinstance(value, float) else str(value)
            raise FuncrobustError(f"{flag} {text} is there twice: say it once")
