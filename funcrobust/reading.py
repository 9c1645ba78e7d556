"""What is read from disk, believed in nothing: plain files alone, strict JSON, one schema for all.

Every reader of ours goes through here, so that bad bytes end in a `FuncrobustError` and in nothing
else; see SECURITY.md.
"""

from __future__ import annotations

import json
import math
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs

from funcrobust.core.errors import FuncrobustError, one_line

Kind = TypeVar("Kind")

LARGEST_TEXT = 2**26
"""Bytes of a file of JSON; a run's metrics of a million epochs are no more."""


# --- files --------------------------------------------------------------------------------------


def read_file(path: str | Path, *, most: int | None = None) -> bytes:
    """Return what is in a plain file, of at most so many bytes.

    A folder, a pipe or a device is refused without waiting for it.

    Raises `FuncrobustError` for these, for a larger file, and for one that cannot be read.
    """
    try:
        # Not to wait for the other end of a pipe; the flag is not there on Windows, nor are pipes.
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FuncrobustError(f"cannot read {path}: it is no plain file")
        if most is not None and found.st_size > most:
            raise FuncrobustError(
                f"cannot read {path}: it has {found.st_size} bytes, where at most {most} are read"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read() if most is None else file.read(most)
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


def require_own_files(folder: Path) -> None:
    """Raise `FuncrobustError` unless all in a folder are plain files of its own, and folders.

    To go on with a run writes to its files: a link that leads elsewhere would let it write there.
    """
    own = os.path.realpath(folder)
    for place, folders, files in os.walk(own):
        for name in (*folders, *files):
            path = Path(place, name)
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind):
                real = os.path.realpath(path)
                if os.path.commonpath([own, real]) != own or not os.path.exists(real):  # noqa: PTH110
                    raise FuncrobustError(
                        f"{path} is a link that leads out of the folder, to {real}: put the file "
                        "itself there"
                    )
            elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise FuncrobustError(f"{path} is no plain file: take it out of the folder")


_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)


def unreadable(path: str | Path, error: BaseException) -> FuncrobustError:
    """Build the error for a file that the system does not give."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return FuncrobustError(f"cannot read {path}: {why or type(error).__name__}")


def user_path(path: str | Path) -> Path:
    """Return a path with ``~`` filled in, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path's raises where there is none)


# --- JSON ---------------------------------------------------------------------------------------


def parse_json(text: str | bytes, what: object, *, finite: bool = True) -> Any:
    """Return what JSON says: no name twice, and finite numbers of which integers have 64 bits.

    Without ``finite``, NaN and infinities are numbers too.

    Raises `FuncrobustError` that names ``what`` for all else, and for too deep a nesting.
    """
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            plain, object_pairs_hook=_once, parse_int=_integer,
            parse_float=_finite if finite else float, parse_constant=_finite if finite else float,
        )  # fmt: skip
        if "\\ud" in plain.lower():  # half a character, perhaps, which nothing can be written with
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise FuncrobustError(f"{what}: its JSON is nested too deeply") from error
    except ValueError as error:
        raise FuncrobustError(f"{what}: not JSON as we write it: {one_line(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:40]!r} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"{text[:24]}... is too large a number")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:24]} is not a finite number")
    return number


# --- the schema ---------------------------------------------------------------------------------


def structured(kind: type[Kind], value: Any, what: object) -> Kind:
    """Return a value of a file as an instance of a type: a dataclass, ``dict[str, float]``, ...

    Nothing is turned into another type but a whole number into a float, and a list into a tuple.

    Raises `FuncrobustError`, in one line that begins with ``what``.
    """
    try:
        return converter().structure(value, kind)
    except cattrs.BaseValidationError as error:
        said = cattrs.transform_error(error, "value", format_exception=_said)[0]
        raise FuncrobustError(f"{what}: {_shortened(said.removesuffix(' @ value'))}") from None
    except FuncrobustError as error:
        raise FuncrobustError(f"{what}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise FuncrobustError(f"{what}: {one_line(error)}") from error


def _said(error: BaseException, _: Any) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _shortened(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}..."


@cache
def converter() -> cattrs.Converter:
    """Return the converter that all readers share: it turns no type into another."""
    made = cattrs.Converter(detailed_validation=True)

    def strictly(value: Any, kind: type) -> Any:
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"expected {kind.__name__}, got {_shown(value)}")
        return kind(value)

    for kind in (int, float, str, bool):
        made.register_structure_hook(kind, strictly)

    def path(value: Any, _: Any) -> Path:
        if not strictly(value, str):  # the current folder, to pathlib
            raise TypeError("expected a path, got ''")
        return user_path(value)

    made.register_structure_hook(Path, path)
    # Whether a text is one of the choices, the options themselves say.
    made.register_structure_hook_func(
        lambda kind: _origin(kind) is Literal, lambda value, _: strictly(value, str)
    )

    def several(value: Any, kind: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, got {_shown(value)}")
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise TypeError(f"expected {len(kinds)} values, got {_shown(value)}")
        return tuple(made.structure(v, k) for v, k in zip(value, kinds, strict=True))

    def by_name(value: Any, kind: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"expected names with values, got {_shown(value)}")
        name, held = get_args(kind)
        return {made.structure(k, name): made.structure(v, held) for k, v in value.items()}

    made.register_structure_hook_func(lambda kind: _origin(kind) is tuple, several)
    made.register_structure_hook_func(lambda kind: _origin(kind) is dict, by_name)
    made.register_unstructure_hook(Path, str)
    return made


def _origin(kind: Any) -> Any:
    return get_origin(kind)  # which as such has types of its own for what is compared with it


def _shown(value: Any) -> str:
    """Say what was found, shortly: a file may hold megabytes of it."""
    text = repr(value)  # of what JSON holds, which is small and not too deep
    return text if len(text) <= 60 else f"{text[:60]}..."
