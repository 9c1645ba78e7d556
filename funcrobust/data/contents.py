"""What one's own data hold, as one number: a run goes on with the images that it began with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.folders import is_image
from funcrobust.data.sets import names
from funcrobust.files import sha256_of
from funcrobust.reading import user_path


def contents(name: str) -> str | None:
    """Return the SHA-256 of a user's own data; None for a set with a name, which is checked anyway.

    Of a file its bytes; of a folder the names and sizes of its images and shards, for it may be
    larger than one wants to read twice. It does not depend on where they lie, nor on what else
    lies there.

    Raises `FuncrobustError` for what cannot be read.
    """
    if name in names():
        return None
    path = user_path(name)
    try:
        if path.is_dir():
            digest = hashlib.sha256()
            for inside, size in sorted(_images(path)):
                digest.update(f"{len(inside)} {inside} {size}\n".encode(errors="surrogateescape"))
            return digest.hexdigest()
        return sha256_of(path)
    except OSError as error:
        raise FuncrobustError(
            f"cannot read {error.filename or path}: {error.strerror or error}"
        ) from error


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield what a set in a folder is read from, by its name below it, and the sizes."""
    for shard in folder.glob("*.tar"):
        yield shard.name, shard.stat().st_size
    for half in ("train", "test", "val"):
        for above, _, files in os.walk(folder / half, followlinks=True):
            for file in files:
                path = Path(above, file)
                if is_image(path):
                    yield path.relative_to(folder).as_posix(), path.stat().st_size
