"""From a network to a file, with what the file proves itself by."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from funcrobust.checkpoints.card import Card
from funcrobust.checkpoints.fingerprint import (
    TOLERANCE,
    Fingerprint,
    difference,
    digest,
    fingerprint,
    is_fingerprint,
)
from funcrobust.checkpoints.format import (
    CARD,
    check_finite,
    copies,
    single_precision,
    to_json,
    write,
)
from funcrobust.checkpoints.loading import build, fill, require_fit
from funcrobust.checkpoints.locate import CHECKPOINT, destination
from funcrobust.files import atomic_write
from funcrobust.models.registry import names_code


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    card: Card,
    *,
    network: nn.Module | None = None,
) -> Path:
    """Write a checkpoint and return its path.

    Args:
        path: where to; ``.safetensors`` is appended if missing, and a folder, one that is
            there or a name that ends in a slash, gets ``checkpoint.safetensors``. Missing folders
            are made.
        tensors: parameters and buffers by their ``state_dict`` names, on any device and in any
            memory layout.
        card: embedded in the file, and written beside it as ``<stem>.json`` for people to read.
            Its ``sha256`` and ``fingerprint`` are taken here, whatever it had; its figures are as
            you say: of weights that were trained on from a loaded card, say others, as in
            ``dataclasses.replace(card, metrics={}, command="", notes="from ...")``.
        network: what the tensors are of, on any device; it is not changed. By default it is built
            by the card's ``model``, unless that is a ``package.module:factory`` or of the zoo: a
            card calls no code.

    The fingerprint is of the tensors as they are stored, so that a file in float16 has its own. It
    is left empty where there is none: without a network, or with one that fails on the CPU, or
    that draws at random in evaluation mode.

    Either the whole new file is there afterwards or the old one is untouched.

    Raises `FuncrobustError` for NaN or infinite values, tensors that are not those of the
    ``network``, and files that cannot be written.
    """
    path = destination(path, CHECKPOINT)
    check_finite(tensors, path)
    if network is not None:
        require_fit(network, tensors, type(network).__name__, path)
    stored = copies(tensors, path)
    taken = _taken(network, stored, card, path)
    card = dataclasses.replace(card, sha256=digest(stored), fingerprint=taken)
    text = to_json(dataclasses.asdict(card), path)
    write(path, stored, CARD, text)
    atomic_write(path.with_suffix(".json"), text + "\n")
    return path


def _taken(
    network: nn.Module | None, stored: dict[str, Tensor], card: Card, path: Path
) -> Fingerprint:
    if network is None and names_code(card.model):
        return ()
    try:
        network = build(card) if network is None else copy.deepcopy(network).cpu()
        network = fill(network, single_precision(stored), card.model, path)
        once, twice = (fingerprint(network, card.image_shape) for _ in range(2))
    except Exception:  # a network of one's own may do anything: its weights are saved all the same
        return ()
    same = is_fingerprint(once, card.image_shape) and difference(twice, once) <= TOLERANCE
    return once if same else ()
