"""What one's own data hold, as one number: a run goes on with the images that it began with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.sets import names
from funcrobust.reading import user_path


def contents(name: str) -> str | None:
    """Return the SHA-256 of a user's own data; None for a set with a name, which is checked anyway.

    Of a file its bytes; of a folder the names below it and the sizes of all files, for it may be
    larger than one wants to read twice. It does not depend on where they lie.

    Raises `FuncrobustError` for what cannot be read.
    """
    if name in names():
        return None
    path = user_path(name)
    try:
        if path.is_dir():
            digest = hashlib.sha256()
            for inside, size in sorted(_files(path)):
                digest.update(f"{len(inside)} {inside} {size}\n".encode(errors="surrogateescape"))
            return digest.hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FuncrobustError(f"cannot read {path}: {error.strerror or error}") from error


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the files below a folder and their sizes, hidden ones left out: none is an image."""
    for above, inside, files in os.walk(folder):
        inside[:] = [each for each in inside if not each.startswith(".")]
        for file in files:
            if not file.startswith("."):
                path = Path(above, file)
                yield path.relative_to(folder).as_posix(), path.stat().st_size
