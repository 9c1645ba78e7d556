"""The known sets, one a file: the file's name is the set's, its ``SET`` says how to obtain it.

A new set is one more file here, and nothing else: the folder is the list.
"""

from __future__ import annotations

import importlib
import pkgutil

from funcrobust.data.sources import Embedded, Published


def names() -> tuple[str, ...]:
    """Return the names of the known sets, without loading any of their files."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> Published | Embedded:
    """Return how to obtain the set ``name``, which must be one of ``names()``."""
    found: Published | Embedded = importlib.import_module(f"{__name__}.{name}").SET
    return found
