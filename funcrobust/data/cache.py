"""The cache: one safetensors file a set, never half-written, hashed on every read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.numpy
from filelock import FileLock

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.arrays import Arrays
from funcrobust.files import TEMPORARY, atomic_write
from funcrobust.reading import user_path

Digests = Mapping[str, str]
"""Array name (x_train, ...) to the SHA-256 of its C-order bytes; images as (N, H, W, C) uint8."""

_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600


def default_cache() -> Path:
    """Return $FUNCROBUST_CACHE, else $XDG_CACHE_HOME/funcrobust, else ~/.cache/funcrobust."""
    if chosen := os.environ.get("FUNCROBUST_CACHE"):
        return user_path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return user_path(base) / "funcrobust"
    return Path.home() / ".cache" / "funcrobust"


def digests(arrays: Arrays) -> dict[str, str]:
    """Return the SHA-256 of each array's C-order bytes, as hexadecimal."""
    return {key: hashlib.sha256(array.data).hexdigest() for key, array in arrays.named().items()}


def verify(what: str, arrays: Arrays, expected: Digests) -> Arrays:
    """Return ``arrays`` if they hash as ``expected``, else raise ``FuncrobustError``."""
    for key, digest in digests(arrays).items():
        if digest != expected.get(key):
            raise FuncrobustError(
                f"{what}: the SHA-256 of {key} is {digest[:12]}..., "
                f"not {str(expected.get(key))[:12]}...: damaged, or another set"
            )
    return arrays


def cache_file(cache: Path, name: str) -> Path:
    """Return the file in which the set ``name`` is kept."""
    return cache / f"{name}.safetensors"


def read_cache(path: Path, expected: Digests | None) -> Arrays:
    """Read a set back and check it against ``expected``, or else the hashes in its header.

    Raises ``FuncrobustError`` if the file is missing, unreadable or does not hash as it should.
    """
    if not path.is_file():
        raise FuncrobustError(f"nothing at {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            # get_tensor returns a copy in memory, so the file may be replaced meanwhile
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        arrays = Arrays(**tensors, class_names=tuple(json.loads(header["class_names"])))
        recorded: Digests = json.loads(header["sha256"])
    except Exception as error:  # of many types: a header may hold anything
        raise FuncrobustError(f"{path} is damaged ({error})") from error
    return verify(str(path), arrays, expected or recorded)


def write_cache(path: Path, arrays: Arrays, origin: str) -> None:
    """Write a set so that at any moment ``path`` is absent, the old set or the new one, whole.

    Raises ``FuncrobustError`` if the folder cannot be written.
    """
    header = {
        "class_names": json.dumps(arrays.class_names),
        "sha256": json.dumps(digests(arrays)),
        "origin": origin,
    }
    atomic_write(path, safetensors.numpy.save(arrays.named(), metadata=header))


@contextlib.contextmanager
def exclusive(cache: Path, name: str) -> Iterator[None]:
    """Hold the lock on ``name``, so that of many processes on a cache only one downloads.

    What a killed process left behind more than a day ago is removed first.
    """
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        lock = FileLock(cache / f".{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """Give a temporary folder in the cache, for what is downloaded; it is gone afterwards."""
    with _writing(cache):
        folder = tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache, ignore_cleanup_errors=True)
    with folder as path:
        yield Path(path)


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Turn a failure to write into one line that names the folder and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FuncrobustError(
            f"cannot write the data cache {cache} ({reason}); "
            "set FUNCROBUST_CACHE to a folder that can be written"
        ) from error


def _sweep(cache: Path) -> None:
    for leftover in (*cache.glob(f"{_PARTIAL}*"), *cache.glob(TEMPORARY)):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
