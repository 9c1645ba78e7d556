"""Where checkpoints are: the shipped ones, a run's, and where a new one goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from funcrobust.core.errors import FuncrobustError, did_you_mean
from funcrobust.reading import user_path

SUFFIX = ".safetensors"

CHECKPOINT = f"checkpoint{SUFFIX}"
"""What a run leaves, and what a folder means."""
STATE, STATE_BEFORE = f"state{SUFFIX}", f"state-before{SUFFIX}"
"""A run's newest state, and the one saved before it."""
STATE_RECORDED = f"state-recorded{SUFFIX}"
"""The state of the last record, or the last one that was watched: what is kept when the epochs
after it go wrong."""


def shipped() -> dict[str, Path]:
    """Return the checkpoints that travel with the project, by name."""
    return {p.stem: p for folder in _shipped_folders() for p in sorted(folder.glob(f"*{SUFFIX}"))}


def _shipped_folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    # Beside an installed package there could be anybody's folder called checkpoints.
    source = (checkout / "checkpoints",) if (checkout / "pyproject.toml").is_file() else ()
    return (*source, package / "_shipped")


def resolve(path_or_name: str | Path) -> Path:
    """Return the file meant by a path, a run's folder or the name of a shipped checkpoint.

    A folder means its ``checkpoint.safetensors``, or else the state of the run in it; the suffix
    may be left out.

    Raises `FuncrobustError` that lists what there is when nothing fits.
    """
    path = user_path(path_or_name)
    inside = (path / name for name in (CHECKPOINT, STATE, STATE_BEFORE))
    for candidate in (path, Path(f"{path}{SUFFIX}"), *inside):
        if os.path.isfile(candidate):  # noqa: PTH113  (Path's own raises on too long a name)
            return candidate
    known = shipped()
    name = str(path_or_name).removesuffix(SUFFIX)
    if name in known:
        return known[name]
    if os.path.isdir(path):  # noqa: PTH112
        found = listing(sorted(p.name for p in path.iterdir()), 10)
        raise FuncrobustError(f"no {CHECKPOINT} in the folder {path}, which holds {found}")
    raise FuncrobustError(
        f"no checkpoint {str(path_or_name)!r}{did_you_mean(name, known)}: give a path, or one of "
        f"the shipped ones: {listing(sorted(known), 10)}"
    )


def destination(path: str | Path, in_folder: str) -> Path:
    """Return where to write: ``path`` with our suffix; in a folder, a file named ``in_folder``."""
    is_folder = str(path).endswith(("/", os.sep))
    path = user_path(path)
    if is_folder or os.path.isdir(path):  # noqa: PTH112
        return path / in_folder
    return path if path.suffix == SUFFIX else Path(f"{path}{SUFFIX}")


def listing(found: Sequence[str], limit: int) -> str:
    """Name the first of what was found, in a line."""
    more = ", ..." if len(found) > limit else ""
    names = (name if len(name) <= 80 else f"{name[:80]}..." for name in found[:limit])
    return (", ".join(names) or "nothing") + more
