"""What a decoder may take, and what it raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from funcrobust.core.errors import FuncrobustError

LIMIT = 2 * 2**30
"""Bytes that are decoded at most, unless told otherwise: a small file may claim any amount."""


def require_room(what: object, size: int, limit: int) -> None:
    """Raise for what would be more than ``limit`` bytes, before it is decoded."""
    if size > limit:
        raise FuncrobustError(
            f"{what} would be {size / 2**30:.3g} GiB decoded, where {limit / 2**30:.3g} is the "
            "limit: if it is meant so, say --max-data-gib (in Python max_bytes=)"
        )


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
