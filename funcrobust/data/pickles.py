"""Read the pickles in which CIFAR-10 and CIFAR-100 are published, and let them run nothing.

A pickle may call whatever its loader can look up. Here the three names that the published files
use are answered by stand-ins of plain Python, and every other name is refused. NumPy's own
``dtype`` is not among them: its pickled state can forge memory.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.decoding import reading
from funcrobust.unpickling import PlainUnpickler


class _ByteType:
    """Stands in for ``numpy.dtype``: accepts uint8 only."""

    def __init__(self, code: str, *_flags: Any) -> None:
        if code not in ("u1", "|u1"):
            raise FuncrobustError(
                f"the pickle holds an array of type {str(code)[:20]!r}, not uint8"
            )

    def __setstate__(self, _state: Any) -> None:
        """Byte order and alignment say nothing about bytes."""


class _ByteArray:
    """Stands in for ``numpy.ndarray``: keeps the pickled state, to be read as uint8."""

    state: tuple[Any, ...]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.uint8]:
        _version, shape, _byte_type, fortran, raw = self.state
        # a Python 2 string arrives as text, one character a byte
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _new_array(*_arguments: Any) -> _ByteArray:
    return _ByteArray()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _ByteType,
}


class _Unpickler(PlainUnpickler):
    stateful = (_ByteType, _ByteArray)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise FuncrobustError(
                f"the pickle asks for {module[:40]}.{name[:40]}, which is refused"
            )
        return _STAND_INS[module, name]


def read_pickle(what: str, content: bytes) -> dict[str, Any]:
    """Return the dictionary that a CIFAR pickle holds, its arrays as uint8.

    Raises ``FuncrobustError`` for anything but plain containers, text, numbers and uint8 arrays.
    """
    with reading(what):
        entries = _Unpickler(io.BytesIO(content), len(content)).load()
        return {
            key: value.array() if isinstance(value, _ByteArray) else value
            for key, value in entries.items()
        }


def planes(rows: NDArray[Any]) -> NDArray[Any]:
    """Turn CIFAR's rows of red, green and blue planes (N, 3072) into images (N, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
