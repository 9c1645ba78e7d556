"""Try the sources of a published set in order, and keep in the cache what the first one gave."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.cache import (
    Digests,
    cache_file,
    exclusive,
    read_cache,
    scratch,
    verify,
    write_cache,
)
from funcrobust.data.dataset import Arrays
from funcrobust.data.progress import Progress


class DataUnavailable(FuncrobustError):  # noqa: N818, the name says what is so
    """No source of the set is in reach. The message lists each, why it failed, what to do."""


@dataclass(frozen=True)
class Remote:
    """A place to fetch from: ``fetch(folder, progress)`` may leave files in ``folder``."""

    phrase: str
    fetch: Callable[[Path, Progress], Arrays]


@dataclass(frozen=True)
class Recipe:
    """How to obtain a published set.

    ``read_folder`` and the remotes check what they read against published checksums, so all
    sources of a recipe give the same bits and may stand in for each other. ``digests``, where
    known, are checked once more on whatever source, the cache included.
    """

    name: str
    read_folder: Callable[[Path], Arrays]
    remotes: tuple[Remote, ...]
    digests: Digests | None = None
    system_folders: tuple[Path, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class _Source:
    phrase: str
    read: Callable[[], Arrays]
    local: bool = True


def obtain(
    recipe: Recipe, *, folder: Path | None, cache: Path, download: bool, progress: Progress
) -> tuple[Arrays, str]:
    """Return the set and the phrase of the source that gave it: cache, folders, then remotes.

    A failing cache or folder is reported as a warning. Raises ``DataUnavailable`` if none has it.
    """
    path = cache_file(cache, recipe.name)
    stored = _Source("cache", lambda: read_cache(path, recipe.digests))
    failures: dict[str, str] = {}
    if (arrays := _attempt(stored, failures, warn=path.exists())) is not None:
        return arrays, stored.phrase
    others = _local(recipe, folder) + (_remote(recipe, cache, progress) if download else [])
    if others:
        with exclusive(cache, recipe.name):
            # another process may have filled the cache while this one waited for the lock
            for source in (stored, *others):
                given = source.local and source is not stored
                if (arrays := _attempt(source, failures, warn=given)) is None:
                    continue
                if source is not stored:
                    write_cache(path, arrays, source.phrase)
                return arrays, source.phrase
    raise DataUnavailable(_lament(recipe, failures, download))


def _local(recipe: Recipe, folder: Path | None) -> list[_Source]:
    given = [] if folder is None else [folder.expanduser()]
    found = [place for place in recipe.system_folders if place.is_dir()]
    return [
        _Source(f"folder {place}", partial(_read_folder, recipe, place))
        for place in (*given, *found)
    ]


def _remote(recipe: Recipe, cache: Path, progress: Progress) -> list[_Source]:
    return [
        _Source(remote.phrase, partial(_fetch, recipe, remote, cache, progress), local=False)
        for remote in recipe.remotes
    ]


def _read_folder(recipe: Recipe, folder: Path) -> Arrays:
    return _checked(recipe, recipe.read_folder(folder))


def _fetch(recipe: Recipe, remote: Remote, cache: Path, progress: Progress) -> Arrays:
    with scratch(cache) as folder:
        return _checked(recipe, remote.fetch(folder, progress))


def _checked(recipe: Recipe, arrays: Arrays) -> Arrays:
    return arrays if recipe.digests is None else verify(recipe.name, arrays, recipe.digests)


def _attempt(source: _Source, failures: dict[str, str], *, warn: bool) -> Arrays | None:
    """Return what the source gives, or None with the reason noted in ``failures``."""
    try:
        return source.read()
    except FuncrobustError as error:
        failures[source.phrase] = str(error)
        if warn:
            warnings.warn(f"{source.phrase}: {error}; looking elsewhere", stacklevel=4)
        return None


def _lament(recipe: Recipe, failures: dict[str, str], download: bool) -> str:
    tried = [f"  - {phrase}: {reason}" for phrase, reason in failures.items()]
    if not download:
        tried.append("  - downloads: not allowed")
    advice = f"{recipe.advice}, or" if recipe.advice else "Name a folder that holds it, or"
    return "\n".join(
        [
            f"{recipe.name} is not in reach. Tried:",
            *tried,
            f"{advice} use --dataset digits, which needs no files.",
        ]
    )
