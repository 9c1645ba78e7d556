"""Named files out of a folder or a tar archive, into memory; nothing is ever extracted."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from funcrobust.core.errors import FuncrobustError


@contextlib.contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on bad bytes into one line that names the file.

    Decoders (tar, zip, zlib, PNG, pickle) raise many unrelated types, hence ``Exception``.
    """
    try:
        yield
    except FuncrobustError:
        raise
    except Exception as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FuncrobustError(f"cannot read {what} ({detail})") from error


def places(folder: Path, inside: Collection[str]) -> list[Path]:
    """Return where to look: ``folder`` (or archive), then what exists of ``inside`` it.

    Raises ``FuncrobustError`` if there is no such folder.
    """
    if not folder.exists():
        raise FuncrobustError(f"no such folder: {folder}")
    return [folder, *(folder / name for name in inside if (folder / name).exists())]


def members(place: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the content of those of ``names`` that the folder or tar archive holds.

    In an archive, names are matched at any depth.
    """
    with reading(place):
        if place.is_dir():
            return {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
        return dict(_tar_members(place, names))


def _tar_members(archive: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if name in names and member.isfile() and (file := tar.extractfile(member)):
                yield name, file.read()
