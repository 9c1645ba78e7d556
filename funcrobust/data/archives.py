"""Named files out of a folder or a tar archive, into memory; nothing is ever extracted.

A set is read from whichever of its published layouts is there.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import LIMIT, reading, require_room
from funcrobust.reading import read_file

Files = Mapping[str, bytes]
"""Content of files by name."""


class Layout(NamedTuple):
    """One form that a set is published in: the files it consists of, and how they are decoded."""

    form: str
    names: tuple[str, ...]
    decode: Callable[[Files], Arrays]


def read_layout(
    what: str, folder: Path, layouts: Sequence[Layout], inside: Collection[str] = ()
) -> Arrays:
    """Decode the first of ``layouts`` that is there whole, in ``folder`` or ``inside`` it.

    ``folder`` may be a tar archive, and so may what is ``inside``. Raises ``FuncrobustError`` if
    none of ``what``'s layouts is there, naming a file that one of them lacks, or if it is damaged.
    """
    wanted = {name for layout in layouts for name in layout.names}
    partial = ""
    for place in places(folder, inside):
        files = members(place, wanted)
        for layout in layouts:
            missing = [name for name in layout.names if name not in files]
            if not missing:
                return layout.decode(files)
            if len(missing) < len(layout.names):
                partial = f" ({place} lacks {missing[0]})"
    forms = " or ".join(layout.form for layout in layouts)
    raise FuncrobustError(f"{folder} does not hold {what} as {forms}{partial}")


def places(folder: Path, inside: Collection[str]) -> list[Path]:
    """Return where to look: ``folder`` (or archive), then what exists of ``inside`` it.

    Raises ``FuncrobustError`` if there is no such folder.
    """
    if not folder.exists():
        raise FuncrobustError(f"no such folder: {folder}")
    return [folder, *(folder / name for name in inside if (folder / name).exists())]


def members(place: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the content of those of ``names`` that the folder or tar archive holds.

    In a folder, a file may be gzipped under its name with ``.gz``; in an archive, names are
    matched at any depth.
    """
    if place.is_dir():
        return dict(_folder_members(place, names))
    with reading(place):
        return dict(_tar_members(place, names))


def _folder_members(folder: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    left = LIMIT
    for name in names:
        plain, zipped = folder / name, folder / f"{name}.gz"
        if plain.is_file():
            require_room(plain, plain.stat().st_size, left)
            content = read_file(plain)
        elif zipped.is_file():
            with reading(zipped), gzip.open(zipped) as file:
                content = file.read(left + 1)
        else:
            continue
        require_room(folder, len(content), left)
        left -= len(content)
        yield name, content


def _tar_members(archive: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    left = LIMIT
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if name in names and member.isfile():
                require_room(archive, member.size, left)
                left -= member.size
                if file := tar.extractfile(member):
                    yield name, file.read()
