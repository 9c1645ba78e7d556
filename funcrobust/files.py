"""Files: how one is named after what it is for, and how one is never half-written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.reading import user_path

TEMPORARY = ".*.tmp"
"""The pattern of the names under which files are written, to find what a killed process left."""


def name_and_path(text: str, kind: str) -> tuple[str, Path | None]:
    """Read ``KIND:NAME`` or ``KIND:NAME=PATH``: something by its name, and where its files are.

    Raises `FuncrobustError` where a part is missing.
    """
    name, equals, path = text.removeprefix(kind).removeprefix(":").partition("=")
    if not name or (equals and not path):
        raise FuncrobustError(f"{text!r} lacks a part: {kind}:NAME or {kind}:NAME=PATH")
    return name, user_path(path) if path else None


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file so that, whatever happens, it is either the old one or the whole new one.

    The data goes to a temporary name in the same folder, is forced to disk, and is renamed into
    place; on failure the temporary file is removed. Text is written as UTF-8. Missing folders are
    made. A link's target is replaced, not the link.

    Raises `FuncrobustError` when the folder or disk does not let it.
    """
    raw = data.encode() if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105  (the name every reader knows)
        except BaseException:  # an interrupt leaves nothing behind either
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync(target.parent)
    except OSError as error:
        raise FuncrobustError(
            f"cannot write {path}: {error.strerror or error}: free some space or choose a folder "
            "you may write to"
        ) from error


def _sync(folder: Path) -> None:
    """Force a rename in a folder to disk, where the system can: Windows cannot open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
