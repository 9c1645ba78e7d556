"""The one exception type for mistakes a person can mend, and how it is worded."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class FuncrobustError(ValueError):
    """Bad input. The message says in one line what was wrong and what to do.

    The command line prints the message and exits with code 2; Python callers may catch it
    as a ``ValueError``.
    """


@contextmanager
def extra(name: str, needed: str) -> Iterator[None]:
    """Import optional libraries within: where one is missing, say how to get it.

    >>> with extra("denoising", "non-local means needs scikit-image"):
    ...     raise ImportError("No module named 'skimage'")
    Traceback (most recent call last):
    funcrobust.core.errors.FuncrobustError: non-local means needs scikit-image (No module named \
'skimage'): pip install "funcrobust[denoising]"

    Args:
        name: the extra of this package that brings the libraries.
        needed: what needs which of them.

    Raises:
        FuncrobustError: what is within raises an ImportError.
    """
    try:
        yield
    except ImportError as error:
        why = f"{needed} ({one_line(error)})"
        raise FuncrobustError(f'{why}: pip install "funcrobust[{name}]"') from error


def require_finite(name: str, value: float, *, minimum: float = 0.0) -> float:
    """Return ``value`` if it is a finite number of at least ``minimum``, else raise.

    A tensor of one number is returned as it is, with its derivative.
    """
    number = as_number(name, value)
    if not math.isfinite(number) or number < minimum:
        raise FuncrobustError(f"{name} must be a finite number >= {minimum:g}, got {value}")
    return value


def as_number(name: str, value: Any) -> float:
    """Return one number as a float, a tensor's without its derivative; raise for anything else."""
    try:
        if not isinstance(value, str):
            return float(getattr(value, "detach", lambda: value)())
    except (TypeError, ValueError, RuntimeError):
        pass
    what = f"a {type(value).__name__}" if hasattr(value, "shape") else repr(value)
    raise FuncrobustError(f"{name} is one number, the same for all examples, not {what}")


def require_count(name: str, value: int, *, minimum: int = 0) -> int:
    """Return ``value`` if it is a whole number of at least ``minimum``, else raise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise FuncrobustError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return value


def one_line(error: object) -> str:
    """Return what another library's error says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def visible(text: str, most: int = 4000) -> str:
    r"""Return a text as a terminal can be given it: one line, nothing in it that is obeyed.

    Control characters (ESC, a line's end), marks that turn the direction of writing and all else
    that is not to be seen are spelled out. What is longer than ``most`` is cut.

    >>> print(visible("a\x1b[2J\u202eb"))
    a\x1b[2J\u202eb
    """
    cut = text if len(text) <= most else f"{text[:most]}..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'that'?)"`` with the nearest of ``known``, or "" if none is near."""
    by_small = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_small, n=1)
    return f" (did you mean {by_small[close[0]]!r}?)" if close else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> FuncrobustError:
    """Build the error for a name that is none of those known.

    >>> print(unknown_name("--units", "Pixel", ("normalized", "pixel")))
    unknown --units 'Pixel' (did you mean 'pixel'?): choose from normalized, pixel
    """
    names = tuple(known)
    hint = did_you_mean(name, names)
    return FuncrobustError(f"unknown {what} {name!r}{hint}: choose from {', '.join(names)}")
