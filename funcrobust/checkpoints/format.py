"""Our format: safetensors with a card inside, never half-written, never running code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from funcrobust.checkpoints.card import Card, card_from
from funcrobust.checkpoints.fingerprint import digest
from funcrobust.checkpoints.locate import SUFFIX, listing, resolve
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.files import atomic_write
from funcrobust.reading import parse_json, read_file, structured

CARD = "funcrobust.card"  # its key in the safetensors metadata

# A list without lists or dicts in it goes on one line. Within a text JSON has no line's end.
_INNERMOST = re.compile(r"\[\s*\n\s*([^\[\]{}]*?)\s*\]")

DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
})  # fmt: skip
"""Tensor types that are read: those torch can add and compare."""

KNOWINGLY = "load it with checkpoints.load(..., verify=False) and save it again"
"""What to do with a checkpoint that is not what its card says, and should not be."""


def read(path: str | Path, *, verify: bool = True) -> tuple[dict[str, Tensor], Card]:
    """Return a checkpoint's tensors, on the CPU, and its card.

    Half-precision tensors come back as float32: a network may be shipped in float16. ``verify``
    compares the tensors with the card's SHA-256, if it has one.

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
    if CARD not in metadata:
        raise FuncrobustError(
            f"{path} has no card inside, so its network is unknown: write it with "
            "funcrobust.checkpoints.save"
        )
    card = card_from(metadata[CARD], path)
    if verify and card.sha256 and digest(tensors) != card.sha256:
        raise FuncrobustError(
            f"{path} is damaged or was changed: its tensors do not have the SHA-256 that its card "
            f"holds ({card.sha256[:12]}...): copy or train it again, or, if you changed them "
            f"knowingly, {KNOWINGLY}"
        )
    check_finite(tensors, path)
    return single_precision(tensors), card


def copies(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors as a file can hold them: contiguous, on the CPU, sharing no memory."""
    with _writing(path):
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }


def write(path: Path, tensors: dict[str, Tensor], key: str, text: str) -> None:
    """Write what `copies` gave, and ``text`` under ``key`` in the header: whole, or not at all."""
    with _writing(path):
        raw = safetensors.torch.save(tensors, {"format": "pt", key: text})
    atomic_write(path, raw)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, NotImplementedError, RuntimeError, ValueError) as error:
        raise FuncrobustError(
            f"cannot write {path}: {one_line(error)}: save plain dense tensors with values"
        ) from error


def parse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU, and the texts in its header."""
    # Read whole rather than mapped: a resumed run replaces the very file it was read from, which
    # some systems forbid while it is mapped.
    data = read_file(path)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # of several types, for sizes that overflow among others
        raise FuncrobustError(
            f"{path} is truncated or not a safetensors file ({one_line(error)}): copy or train "
            "it again"
        ) from error
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], f"the header of {path}")
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES]:
        raise FuncrobustError(
            f"{path} holds {listing(strange, 3)} as {tensors[strange[0]].dtype}, which no network "
            "here computes with: save it in another precision"
        )
    metadata = structured(dict[str, str], header.get("__metadata__") or {}, f"the header of {path}")
    return tensors, metadata


def single_precision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn half-precision tensors into float32."""
    half = (torch.float16, torch.bfloat16)
    return {name: t.float() if t.dtype in half else t for name, t in tensors.items()}


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `FuncrobustError` that names ``path`` and the tensors that are not finite."""
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    bad += [n for n, t in tensors.items() if t.is_complex() and not t.isfinite().all()]
    if bad:
        raise FuncrobustError(
            f"{path}: {len(bad)} tensors with NaN or infinite values ({listing(bad, 3)}): the run "
            "diverged, or the file is damaged; go back to an earlier checkpoint"
        )


def to_json(value: dict[str, Any], path: Path) -> str:
    """Return ``value`` as JSON; raise `FuncrobustError` that names ``path`` if there is none."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=float)
        return _INNERMOST.sub(lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FuncrobustError(
            f"cannot write {path}: what goes with the tensors must be finite numbers, texts, "
            f"lists and dicts ({one_line(error)})"
        ) from error
