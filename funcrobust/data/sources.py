"""Where sets come from: a library that carries them, or the first source in reach that has them.

What a published set's source gave is checked, and kept in the cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.data.arrays import Arrays
from funcrobust.data.cache import (
    Digests,
    cache_file,
    exclusive,
    read_cache,
    scratch,
    verify,
    write_cache,
)
from funcrobust.data.progress import Progress
from funcrobust.reading import user_path


class DataUnavailable(FuncrobustError):  # noqa: N818, the name says what is so
    """No source of the set is in reach. The message lists each, why it failed, what to do."""


@dataclass(frozen=True)
class Remote:
    """A place to fetch from: ``fetch(folder, progress)`` may leave files in ``folder``."""

    phrase: str
    fetch: Callable[[Path, Progress], Arrays]


@dataclass(frozen=True)
class Published:
    """How to obtain a published set.

    ``read_folder`` and the remotes check what they read against published checksums, so all
    sources of a set give the same bits and may stand in for each other. ``digests``, where
    known, are checked once more on whatever source, the cache included. ``mirrored`` is
    `Dataset.mirrored`.
    """

    read_folder: Callable[[Path], Arrays]
    remotes: tuple[Remote, ...]
    digests: Digests | None = None
    system_folders: tuple[Path, ...] = ()
    advice: str = ""
    mirrored: bool = True


@dataclass(frozen=True)
class Embedded:
    """A set that a ``library`` carries: no folder, no cache, no download."""

    read: Callable[[], Arrays]
    library: str
    mirrored: bool = True


@dataclass(frozen=True)
class _Source:
    phrase: str
    read: Callable[[], Arrays]
    local: bool = True


def obtain(
    name: str,
    published: Published,
    *,
    folder: Path | None,
    cache: Path,
    download: bool,
    progress: Progress,
) -> tuple[Arrays, str]:
    """Return the set and the phrase of the source that gave it: cache, folders, then remotes.

    A failing cache or folder is reported as a warning. Raises ``DataUnavailable`` if none has it.
    """
    path = cache_file(cache, name)
    stored = _Source("cache", lambda: read_cache(path, published.digests))
    failures: dict[str, str] = {}
    if (arrays := _attempt(stored, failures, warn=path.exists())) is not None:
        return arrays, stored.phrase
    others = _local(name, published, folder)
    if download:
        others += _remote(name, published, cache, progress)
    if others:
        with exclusive(cache, name):
            # another process may have filled the cache while this one waited for the lock
            for source in (stored, *others):
                given = source.local and source is not stored
                if (arrays := _attempt(source, failures, warn=given)) is None:
                    continue
                if source is not stored:
                    write_cache(path, arrays, source.phrase)
                return arrays, source.phrase
    raise DataUnavailable(_lament(name, published.advice, failures, download))


def _local(name: str, published: Published, folder: Path | None) -> list[_Source]:
    def read(place: Path) -> Arrays:
        return _checked(name, published, published.read_folder(place))

    given = [] if folder is None else [user_path(folder)]
    found = [place for place in published.system_folders if place.is_dir()]
    return [_Source(f"folder {place}", partial(read, place)) for place in (*given, *found)]


def _remote(name: str, published: Published, cache: Path, progress: Progress) -> list[_Source]:
    def fetch(remote: Remote) -> Arrays:
        with scratch(cache) as folder:
            return _checked(name, published, remote.fetch(folder, progress))

    return [
        _Source(remote.phrase, partial(fetch, remote), local=False) for remote in published.remotes
    ]


def _checked(name: str, published: Published, arrays: Arrays) -> Arrays:
    return arrays if published.digests is None else verify(name, arrays, published.digests)


def _attempt(source: _Source, failures: dict[str, str], *, warn: bool) -> Arrays | None:
    """Return what the source gives, or None with the reason noted in ``failures``."""
    try:
        return source.read()
    except FuncrobustError as error:
        failures[source.phrase] = str(error)
        if warn:
            warnings.warn(visible(f"{source.phrase}: {error}; looking elsewhere"), stacklevel=4)
        return None


def _lament(name: str, advice: str, failures: dict[str, str], download: bool) -> str:
    tried = [f"  - {phrase}: {reason}" for phrase, reason in failures.items()]
    if not download:
        tried.append("  - downloads: not allowed")
    advice = f"{advice}, or" if advice else "Name a folder that holds it, or"
    return "\n".join(
        [
            f"{name} is not in reach. Tried:",
            *tried,
            f"{advice} use --dataset digits, which needs no files.",
        ]
    )
