"""Our format: safetensors with a card inside, never half-written, never running code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from funcrobust.checkpoints.card import Card, card_from
from funcrobust.checkpoints.locate import SUFFIX, destination, listing, resolve
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.files import atomic_write

_CARD = "funcrobust.card"  # its key in the safetensors metadata


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Card) -> Path:
    """Write a checkpoint and return its path.

    Args:
        path: where to; ``.safetensors`` is appended if missing, and an existing folder gets
            ``checkpoint.safetensors``. Missing folders are made.
        tensors: parameters and buffers by their ``state_dict`` names, on any device and in any
            memory layout.
        card: embedded in the file, and written beside it as ``<stem>.json`` for people to read.

    Either the whole new file is there afterwards or the old one is untouched.

    Raises `FuncrobustError` for NaN or infinite values and for files that cannot be written.
    """
    path = destination(path, "checkpoint")
    check_finite(tensors, path)
    text = to_json(dataclasses.asdict(card), path)
    write(path, tensors, _CARD, text)
    atomic_write(path.with_suffix(".json"), text + "\n")
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """Return a checkpoint's tensors, on the CPU, and its card.

    Half-precision tensors come back as float32: a network may be shipped in float16.

    Raises `FuncrobustError` for a file that is missing, damaged, without a card, or holds NaN or
    infinite values.
    """
    path = resolve(path)
    if path.suffix != SUFFIX:
        raise FuncrobustError(
            f"{path} is not a {SUFFIX} file and has no card: use read_foreign, or "
            "load(path, model=NAME)"
        )
    tensors, metadata = parse(path)
    if _CARD not in metadata:
        raise FuncrobustError(
            f"{path} has no card inside, so its network is unknown: write it with "
            "funcrobust.checkpoints.save"
        )
    card = card_from(metadata[_CARD], path)
    check_finite(tensors, path)
    return single_precision(tensors), card


def write(path: Path, tensors: Mapping[str, Tensor], key: str, text: str) -> None:
    """Write tensors, and ``text`` under ``key`` in the header: whole, or not at all."""
    # safetensors refuses tensors that share memory or are not contiguous; copies are neither.
    try:
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        raw = safetensors.torch.save(copies, {"format": "pt", key: text})
    except (SafetensorError, NotImplementedError, RuntimeError, ValueError) as error:
        raise FuncrobustError(
            f"cannot write {path}: {one_line(error)}: save plain dense tensors with values"
        ) from error
    atomic_write(path, raw)


def parse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU, and the texts in its header."""
    # Read whole rather than mapped: a resumed run replaces the very file it was read from, which
    # some systems forbid while it is mapped.
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FuncrobustError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise FuncrobustError(
            f"{path} is truncated or not a safetensors file ({one_line(error)}): copy or train "
            "it again"
        ) from error
    return tensors, header.get("__metadata__", {})


def single_precision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn half-precision tensors into float32."""
    half = (torch.float16, torch.bfloat16)
    return {name: t.float() if t.dtype in half else t for name, t in tensors.items()}


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `FuncrobustError` that names ``path`` and the tensors that are not finite."""
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise FuncrobustError(
            f"{path}: {len(bad)} tensors with NaN or infinite values ({listing(bad, 3)}): the run "
            "diverged, or the file is damaged; go back to an earlier checkpoint"
        )


def to_json(value: dict[str, Any], path: Path) -> str:
    """Return ``value`` as JSON; raise `FuncrobustError` that names ``path`` if there is none."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise FuncrobustError(
            f"cannot write {path}: what goes with the tensors must be finite numbers, texts, "
            f"lists and dicts ({one_line(error)})"
        ) from error
