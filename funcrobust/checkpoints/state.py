"""A run's full state: all that it needs to go on to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from funcrobust.checkpoints.card import Card, card_from
from funcrobust.checkpoints.fingerprint import digest
from funcrobust.checkpoints.format import (
    check_finite,
    copies,
    parse,
    single_precision,
    to_json,
    write,
)
from funcrobust.checkpoints.locate import STATE, destination, resolve
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.reading import parse_json, structured

_KEY = "funcrobust.state"  # its key in the safetensors metadata


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write everything a run needs to go on, to the bit, and return the path.

    ``tensors`` are parameters, buffers and optimizer leaves by name, of any precision; ``meta``
    is anything JSON can hold. A folder gets ``state.safetensors``. Atomic, as `save` is; the
    values are not checked, but a SHA-256 of all of them is in the file.
    """
    path = destination(path, STATE)
    return write_state(path, copies(tensors, path), meta)


def write_state(path: Path, copied: dict[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Do what `save_state` does with what `format.copies` gave, to a file of exactly this name."""
    plain = json.loads(to_json(dict(meta), path))
    text = to_json({"meta": plain, "sha256": _sha256(copied, plain)}, path)
    write(path, copied, _KEY, text)
    return path


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `save_state` wrote: the same tensors to the bit, on the CPU, and ``meta``.

    Raises `FuncrobustError` for a file that is missing, damaged (to the last bit) or not a run's
    state.
    """
    path = destination(path, STATE)
    tensors, metadata = parse(path)
    if _KEY not in metadata:
        raise FuncrobustError(
            f"{path} is not the state of a run, so nothing can be resumed from it: give the file "
            "that save_state wrote"
        )
    found = parse_json(metadata[_KEY], f"the state in {path}")
    if not isinstance(found, dict) or not isinstance(found.get("meta"), dict):
        raise FuncrobustError(
            f"{path} is damaged, or of an earlier version: go on with the version that wrote it, "
            "or start anew"
        )
    meta: dict[str, Any] = found["meta"]
    if found.get("sha256") != _sha256(tensors, meta):
        raise FuncrobustError(
            f"{path} is damaged: what it holds does not have the SHA-256 that was written with it"
        )
    _check_step(tensors, meta, path)
    _check_strides(tensors, meta, path)
    return tensors, meta


def _sha256(tensors: Mapping[str, Tensor], meta: Any) -> str:
    text = digest(tensors) + json.dumps(meta, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_step(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
    """Raise for a step, where there is one, that is no count."""
    step = tensors.get("step")
    if step is not None and (step.shape or step.dtype != torch.int64 or int(step) < 0):
        raise FuncrobustError(f"{path} is damaged: its step is no whole number >= 0")
    if "step" in meta:
        require_count(f"the step in {path}", meta["step"])


def _check_strides(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
    """Raise unless memory layouts, where there are any, are orders of the axes of each tensor.

    With gaps between them a few numbers would claim any amount of memory. The sums of an epoch's
    metrics are numbers without a layout.
    """
    if "strides" not in meta:
        return
    strides = structured(dict[str, tuple[int, ...]], meta["strides"], f"the strides in {path}")
    for name, tensor in tensors.items():
        if name.startswith("sums/") and tensor.ndim == 0:
            continue
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


# --- the network in it --------------------------------------------------------------------------

PARTS = ("params", "buffers", "average")
"""The parts of a state that make up the network; where an average is kept, its tensors
replace those of the same names."""


def with_card(meta: Mapping[str, Any], card: Mapping[str, Any], left_out: list[str]) -> Any:
    """Return ``meta`` with what `read_network` needs: a card's fields, tensors not the network's.

    The state's tensors are then called ``params/NAME``, ``buffers/NAME`` and ``average/NAME``.
    """
    return {**meta, "card": dict(card), "left_out": left_out}


def step_of(path_or_name: str | Path) -> int | None:
    """Return the updates done in the state of a run; None for what is no such file."""
    try:
        with safetensors.safe_open(resolve(path_or_name), framework="pt") as file:
            text = (file.metadata() or {})[_KEY]
        return int(parse_json(text, "the state")["meta"]["step"])
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError):
        return None


def read_network(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Return the network's tensors in a run's state, and a card that says at which step.

    Of an average the batch-norm statistics are averaged too, where a finished run takes them anew.

    Raises `FuncrobustError` as `load_state` does, and for NaN or infinite values.
    """
    tensors, meta = load_state(path)
    if "card" not in meta:
        raise FuncrobustError(f"{path} does not say of which network it is: resume the run first")
    network = {
        key.removeprefix(f"{part}/"): tensor
        for part in PARTS
        for key, tensor in tensors.items()
        if key.startswith(f"{part}/")
    }
    left_out = structured(tuple[str, ...], meta.get("left_out"), f"the state in {path}")
    network = {name: t for name, t in network.items() if name not in left_out}
    check_finite(network, path)
    card = card_from(json.dumps(meta["card"]), path)
    notes = f"the state at step {meta.get('step')} of a run that has not ended"
    return single_precision(network), replace(card, notes=notes)
