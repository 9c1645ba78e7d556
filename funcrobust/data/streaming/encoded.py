"""Where the encoded images of a set lie: files of a folder, or parts of tar archives.

A million of them must not be a million Python objects, which worker processes would copy as soon
as they look at them: hence arrays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from funcrobust.reading import read_file, unreadable

Array = NDArray[Any]


class Encoded(Protocol):
    """Encoded images, numbered from 0."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, number: int) -> str:
        """Return what errors call one."""
        ...

    def read(self, number: int) -> bytes:
        """Return the bytes of one; raises `FuncrobustError` if they cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are files below a folder."""

    root: Path
    paths: Array
    """Relative to the root, bytes, (N,)."""

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, number: int) -> Path:
        """Return where one lies."""
        return self.root / os.fsdecode(bytes(self.paths[number]))

    def name(self, number: int) -> str:
        return str(self.path(number))

    def read(self, number: int) -> bytes:
        return read_file(self.path(number))


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Images that are members of tar archives, read at their place without a look at the others."""

    shards: tuple[Path, ...]
    which: Array
    """The shard of each, (N,)."""
    offsets: Array
    sizes: Array
    members: Array
    """Names within the shard, bytes, (N,)."""

    def __len__(self) -> int:
        return len(self.which)

    def name(self, number: int) -> str:
        member = os.fsdecode(bytes(self.members[number]))
        return f"{self.shards[self.which[number]]}, member {member}"

    def read(self, number: int) -> bytes:
        shard = self.shards[self.which[number]]
        try:
            with shard.open("rb") as file:
                file.seek(int(self.offsets[number]))
                content: bytes = file.read(int(self.sizes[number]))
        except OSError as error:
            raise unreadable(shard, error) from error
        return content


def as_bytes(names: list[str]) -> Array:
    """Return names as one array."""
    return np.array([os.fsencode(name) for name in names], np.bytes_)
