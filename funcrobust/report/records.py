"""Records as JSON: numbers, paths and tensors made plain, files that are never half-written."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from funcrobust.core.errors import FuncrobustError
from funcrobust.files import WriteError, atomic_write
from funcrobust.reading import parse_json

Record = dict[str, Any]

SHARES = frozenset({"clean", "robust", "worst", "attacked"})
"""What figures that are shares end in."""

ACCURACY = frozenset({"accuracy", "acc", "percent"})
"""Words of a label that say so wherever they stand."""


def is_share(name: str) -> bool:
    """Whether a figure is a share, by its name or its label: PGD-20's is pgd20."""
    words = re.split(r"[\s_/-]+", name.lower().removesuffix("_before"))
    ends = words[-1] in SHARES or bool(re.fullmatch(r"pgd\d+", words[-1]))
    return ends or "%" in name or not ACCURACY.isdisjoint(words)


def percent(value: float) -> str:
    """Write a share as in 43.2 %."""
    return f"{100 * value:.1f} %"


def figure(value: float, share: bool) -> str:
    """Write a figure for a person."""
    return percent(value) if share else f"{value:.4g}"


def as_json(value: Mapping[str, Any]) -> str:
    """Return ``value`` as indented JSON: tuples are lists, paths text, 0-d tensors numbers.

    Raises `FuncrobustError` for what JSON cannot hold.
    """
    return json.dumps(value, indent=2, default=_plain) + "\n"


def shortest(value: Any) -> Any:
    """Return figures with every float32 among them as the shortest number that rounds to it.

    0.31999999284744263 is 0.32: nothing was measured more finely. What is no float32 stays as it
    is, and so do whole numbers. Lists and mappings are gone through.
    """
    import numpy as np

    if isinstance(value, Mapping):
        return {name: shortest(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [shortest(one) for one in value]
    if not isinstance(value, float) or not math.isfinite(value) or value.is_integer():
        return value
    if abs(value) > np.finfo(np.float32).max or float(single := np.float32(value)) != value:
        return value
    return float(str(single))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write figures as JSON, `shortest`, to a file as a whole or not at all.

    To standard output for ``-``.
    """
    text = as_json(shortest(value))
    if str(path) == "-":
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise WriteError(f"cannot write to standard output: {error.strerror}") from error
    else:
        atomic_write(path, text)


def as_line(record: Mapping[str, Any]) -> bytes:
    """Return ``record`` as one line of JSON, its figures `shortest`.

    NaN and infinities, which JSON lacks, are ``null``.
    """
    clean = {name: shortest(_finite(value)) for name, value in record.items()}
    return (json.dumps(clean, default=_plain, allow_nan=False) + "\n").encode()


def parse_line(line: bytes) -> Record | None:
    """Return the record in one line of JSON, or None for anything else."""
    try:
        record = parse_json(line, "a record")
    except FuncrobustError:
        return None
    return record if isinstance(record, dict) else None


def append_line(path: Path, line: bytes) -> None:
    """Append a line, after completing or removing a last one that a crash left without its end."""
    with path.open("a+b") as stream:
        _mend_tail(stream)
        stream.write(line)


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it knows."""
    import torch

    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "item") and getattr(value, "size", None) is not None:  # 0-d tensor, numpy
        with suppress(ValueError, RuntimeError):
            return value.item()
    raise FuncrobustError(f"cannot write {value!r} ({type(value).__name__}) as JSON")


def _finite(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool) and value is not None:
        value = _plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mend_tail(stream: Any) -> None:
    """Complete or remove a last line that a crash left without its end."""
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        return
    stream.seek(size - 1)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    last = stream.read().rpartition(b"\n")[2]
    if parse_line(last) is None:
        stream.truncate(size - len(last))
    else:
        stream.write(b"\n")
