"""Files: how one is named after what it is for, and how one is never half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import zlib
from itertools import chain, count
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.reading import user_path

TEMPORARY = ".*.tmp"
"""The pattern of the names under which files are written, to find what a killed process left."""

_NODE = f"{zlib.crc32(platform.node().encode()):08x}"
_WRITER = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp$")


class WriteError(FuncrobustError):
    """A file or folder that the system does not let us write: it is full, gone or forbidden."""


def name_and_path(text: str, kind: str) -> tuple[str, Path | None]:
    """Read ``KIND:NAME`` or ``KIND:NAME=PATH``: something by its name, and where its files are.

    Raises `FuncrobustError` where a part is missing.
    """
    name, equals, path = text.removeprefix(kind).removeprefix(":").partition("=")
    if not name or (equals and not path):
        raise FuncrobustError(f"{text!r} lacks a part: {kind}:NAME or {kind}:NAME=PATH")
    return name, user_path(path) if path else None


def is_plain_name(name: str) -> bool:
    """Tell whether a text is one folder's own name, at most 200 printable characters long."""
    plain = Path(name).name == name and name not in ("", ".", "..")
    return plain and name.isprintable() and len(name) <= 200  # a stray byte is not printable


def place_of(named: str | Path | None, usual: str | Path, flag: str = "") -> Path:
    """Return where a file goes: as named, or under its usual name if nothing is there yet.

    What a person names may be replaced; what is written under a name that nobody gave replaces
    nothing. Raises `FuncrobustError` where the usual name is taken; ``flag`` is how to give one.
    """
    if named is not None:
        return user_path(named)
    if os.path.lexists(usual):
        raise FuncrobustError(
            f"{usual} is there already: {flag}{usual} replaces it, {flag}OTHER leaves it be"
        )
    return Path(usual)


def free_place(usual: str | Path) -> Path:
    """Return the usual name, or that with the first number that is free: page-2.html.

    For what is left beside the work, which should not be refused for it.
    """
    usual = Path(usual)
    names = (usual.with_name(f"{usual.stem}-{number}{usual.suffix}") for number in count(2))
    return next(path for path in chain((usual,), names) if not os.path.lexists(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file so that, whatever happens, it is either the old one or the whole new one.

    The data goes to a temporary name in the same folder, is forced to disk, and is renamed into
    place; on failure the temporary file is removed. Text is written as UTF-8. Missing folders are
    made. A link's target is replaced, not the link.

    Raises `WriteError` when the folder or disk does not let it.
    """
    raw = data.encode() if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    temporary = temporary_name(target)
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
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}: free some space or choose a folder "
            "you may write to"
        ) from error


def temporary_name(target: Path) -> Path:
    """Return a name beside ``target`` to write under: it says whose, for `clear_leftovers`."""
    whose = f"{_NODE}-{os.getpid()}-{secrets.token_hex(6)}"
    return target.with_name(f".{target.name[:40]}.{whose}.tmp")


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes of this machine left half-written in a folder.

    What a live process writes stays, and what another machine's may.
    """
    for path in folder.glob(TEMPORARY):
        found = _WRITER.search(path.name)
        if found and found[1] == _NODE and not _alive(int(found[2])):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":  # to ask would end it
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    except OverflowError:
        return False
    return True


def also_named(path: Path, other: Path) -> None:
    """Give a file a second name in the same folder, whatever that named before.

    What replaces ``path`` later (`atomic_write`) leaves ``other`` as it is. No bytes are copied
    where the file system has links. At every instant both names are of whole files.

    Raises `WriteError` when the folder or disk does not let it.
    """
    temporary = temporary_name(other)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)  # noqa: PTH105
        # Two names of one file already: then POSIX renames nothing.
        temporary.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(
            f"cannot write {other}: {error.strerror or error}: free some space or choose a folder "
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
