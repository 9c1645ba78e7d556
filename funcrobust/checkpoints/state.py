"""A run's full state: all that it needs to go on to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
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
from funcrobust.checkpoints.locate import destination, resolve
from funcrobust.core.errors import FuncrobustError

_STATE = "funcrobust.state"  # its key in the safetensors metadata


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write everything a run needs to go on, to the bit, and return the path.

    ``tensors`` are parameters, buffers and optimizer leaves by name, of any precision; ``meta``
    is anything JSON can hold. A folder gets ``state.safetensors``. Atomic, as `save` is; the
    values are not checked, but a SHA-256 of all of them is in the file.
    """
    path = destination(path, "state")
    return write_state(path, copies(tensors, path), meta)


def write_state(path: Path, copied: dict[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Do what `save_state` does with what `format.copies` gave, to a file of exactly this name."""
    plain = json.loads(to_json(dict(meta), path))
    text = to_json({"meta": plain, "sha256": _sha256(copied, plain)}, path)
    write(path, copied, _STATE, text)
    return path


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `save_state` wrote: the same tensors to the bit, on the CPU, and ``meta``.

    Raises `FuncrobustError` for a file that is missing, damaged (to the last bit) or not a run's
    state.
    """
    path = destination(path, "state")
    tensors, metadata = parse(path)
    if _STATE not in metadata:
        raise FuncrobustError(
            f"{path} is not the state of a run, so nothing can be resumed from it: give the file "
            "that save_state wrote"
        )
    try:
        found = json.loads(metadata[_STATE])
        meta, sha256 = found["meta"], found["sha256"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise FuncrobustError(
            f"{path} is damaged, or of an earlier version (its state does not parse: {error!r}): "
            "go on with the version that wrote it, or start anew"
        ) from error
    if sha256 != _sha256(tensors, meta):
        raise FuncrobustError(
            f"{path} is damaged: what it holds does not have the SHA-256 that was written with it"
        )
    return tensors, meta


def _sha256(tensors: Mapping[str, Tensor], meta: Any) -> str:
    text = digest(tensors) + json.dumps(meta, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- the network in it --------------------------------------------------------------------------

PARTS = ("params", "buffers", "average")
"""What a network is of a state: the last has the last word, where an average is kept."""


def with_card(meta: Mapping[str, Any], card: Mapping[str, Any], left_out: list[str]) -> Any:
    """Return ``meta`` with what `read_network` needs: a card's fields, tensors not the network's.

    The state's tensors are then called ``params/NAME``, ``buffers/NAME`` and ``average/NAME``.
    """
    return {**meta, "card": dict(card), "left_out": left_out}


def step_of(path_or_name: str | Path) -> int | None:
    """Return the updates done in the state of a run; None for what is no such file."""
    try:
        with safetensors.safe_open(resolve(path_or_name), framework="pt") as file:
            return int(json.loads((file.metadata() or {})[_STATE])["meta"]["step"])
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
    network = {name: t for name, t in network.items() if name not in meta["left_out"]}
    check_finite(network, path)
    card = card_from(json.dumps(meta["card"]), path)
    notes = f"the state at step {meta['step']} of a run that has not ended"
    return single_precision(network), replace(card, notes=notes)
