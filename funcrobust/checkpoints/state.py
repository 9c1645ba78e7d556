"""A run's full state: all that it needs to go on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from funcrobust.checkpoints.format import copies, parse, to_json, write
from funcrobust.checkpoints.locate import destination
from funcrobust.core.errors import FuncrobustError

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
    try:
        meta = json.loads(metadata[_STATE])
    except (ValueError, RecursionError) as error:
        raise FuncrobustError(f"{path} is damaged (its state does not parse: {error})") from error
    return tensors, meta
