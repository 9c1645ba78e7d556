"""A run's full state: all that it needs to go on to the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcrobust.checkpoints.format import copies, parse, to_json, write
from funcrobust.checkpoints.locate import destination
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.reading import parse_json, structured

_STATE = "funcrobust.state"  # its key in the safetensors metadata


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write everything a run needs to go on, to the bit, and return the path.

    ``tensors`` are parameters, buffers and optimizer leaves by name, of any precision; ``meta``
    is anything JSON can hold. A folder gets ``state.safetensors``. Atomic, as `save` is; the
    values are not checked.
    """
    path = destination(path, "state")
    write(path, copies(tensors, path), _STATE, to_json(dict(meta), path))
    return path


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `save_state` wrote: the same tensors to the bit, on the CPU, and ``meta``.

    Raises `FuncrobustError` for a file that is missing, damaged or not a run's state.
    """
    path = destination(path, "state")
    tensors, metadata = parse(path)
    if _STATE not in metadata:
        raise FuncrobustError(
            f"{path} is not the state of a run, so nothing can be resumed from it: give the file "
            "that save_state wrote"
        )
    meta = parse_json(metadata[_STATE], f"the state in {path}")
    if not isinstance(meta, dict):
        raise FuncrobustError(f"the state in {path} is damaged: it is no object of JSON")
    _check_step(tensors, meta, path)
    _check_strides(tensors, meta, path)
    return tensors, meta


def _check_step(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
    """Raise for a step, where there is one, that is no count."""
    step = tensors.get("step")
    if step is not None and (step.shape or step.dtype != torch.int64 or int(step) < 0):
        raise FuncrobustError(f"{path} is damaged: its step is no whole number >= 0")
    if "step" in meta:
        require_count(f"the step in {path}", meta["step"])


def _check_strides(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
    """Raise unless memory layouts, where there are any, are orders of the axes of each tensor.

    With gaps between them a few numbers would claim any amount of memory.
    """
    if "strides" not in meta:
        return
    strides = structured(dict[str, tuple[int, ...]], meta["strides"], f"the strides in {path}")
    for name, tensor in tensors.items():
        if name not in strides or not _is_dense(tuple(tensor.shape), strides[name]):
            raise FuncrobustError(f"{path} is damaged: it has no memory layout of {name[:80]!r}")


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether the elements lie one after another, in whatever order of the axes."""
    if len(strides) != len(shape) or min(strides, default=0) < 0:
        return False
    expected = 1
    for stride, size in sorted(pair for pair in zip(strides, shape, strict=True) if pair[1] > 1):
        if stride != expected:
            return False
        expected *= size
    # Where an axis is of one element, or none is there, no step along it is taken.
    return max(strides, default=0) <= max(math.prod(n for n in shape if n), 1)
