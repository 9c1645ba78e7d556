"""What a field of a command's options may say of itself, besides its type and its range."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]


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
