"""What an evaluation leaves in a file: the images that fool, and how far it got.

FILE.safetensors holds, for all N examples, ``numbers`` (in the whole test set), ``labels`` (of a
targeted evaluation: the targets, and to be fooled is to be seen as them),
``fell_to`` (0 misclassified clean, k fooled by the k-th attack, −1 not fooled), ``predicted`` and
``stage`` (the attacks it has been through), and for those that an attack fooled, in that order,
``images`` (float32, in [0, 1]). Its metadata has the settings, as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from funcrobust.checkpoints.format import parse
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import Outcome
from funcrobust.files import atomic_write
from funcrobust.reading import parse_json

ROWS = ("numbers", "labels", "fell_to", "predicted", "stage")


def keep(
    path: Path, settings: dict[str, Any], numbers: Tensor, y: Tensor, outcome: Outcome,
    stage: Tensor,
) -> None:  # fmt: skip
    """Write the file, as a whole or not at all."""
    tensors = {
        "numbers": numbers, "labels": y, "fell_to": outcome.fell_to,
        "predicted": outcome.predicted, "stage": stage,
        "images": outcome.images[outcome.fell_to > 0].float(),
    }  # fmt: skip
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(settings, sort_keys=True)
    atomic_write(path, to_bytes(plain, metadata={"evaluation": text}))


def taken_up(
    path: Path, settings: dict[str, Any], numbers: Tensor, y: Tensor, outcome: Outcome,
    classes: int,
) -> tuple[Outcome, Tensor]:  # fmt: skip
    """Return how far the evaluation in the file got; ``outcome`` is that of no attack.

    Of whom the file says otherwise than ``outcome`` whether they are right without an attack, they
    are to be attacked anew.

    Raises `FuncrobustError` for a file of another evaluation, or none, and for one that contradicts
    itself or the number of ``classes``.
    """
    held, metadata = _read(path)
    text = json.dumps(settings, sort_keys=True)
    different = sorted(
        name for name, value in json.loads(text).items() if metadata.get(name) != value
    )
    if different or not torch.equal(held["numbers"], numbers.cpu()):
        which = ", ".join(different) or "images"
        raise FuncrobustError(
            f"{path} holds another evaluation (other {which}): use another --save, or delete it"
        )
    fooled = held["fell_to"] > 0
    shape = (int(fooled.sum()), *outcome.images.shape[1:])
    same_labels = torch.equal(held["labels"], y.cpu())
    possible = _is_possible(held, len(settings["attacks"]), classes)
    if not possible or not same_labels or tuple(held["images"].shape) != shape:
        raise FuncrobustError(f"{path} does not hold an evaluation of these images: delete it")
    device = outcome.images.device
    images = outcome.images.clone()
    images[fooled.to(device)] = held["images"].to(images)
    held = {name: value.to(device) for name, value in held.items()}
    # By rounding on another device or in another batch, or because the network is random.
    anew = (held["fell_to"] == 0) != (outcome.fell_to == 0)
    found = Outcome(held["fell_to"], images, held["predicted"])
    for kept, fresh in zip(found, outcome, strict=True):
        kept[anew] = fresh[anew]
    return found, held["stage"].masked_fill(anew, 0)


def _is_possible(held: dict[str, Tensor], attacks: int, classes: int) -> bool:
    """Tell whether so many attacks on a network of so many classes can leave such numbers."""
    fell_to, stage, predicted = held["fell_to"], held["stage"], held["predicted"]
    images = held["images"]
    return images.dtype == torch.float32 and all(
        bool(kept.all())
        for kept in (
            (fell_to >= -1) & (fell_to <= stage),
            (stage >= 0) & (stage <= attacks),
            (predicted >= -1) & (predicted < classes),  # -1: of NaN, no class
            (images >= 0) & (images <= 1),
        )
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        held, texts = parse(path)
        metadata = parse_json(texts.get("evaluation", ""), "its settings")
    except FuncrobustError as error:
        raise FuncrobustError(
            f"{path} is no evaluation that was saved ({error}): use another --save"
        ) from error
    n = len(held["numbers"]) if "numbers" in held and held["numbers"].ndim else -1
    if (
        not isinstance(metadata, dict)
        or "images" not in held
        or any(
            name not in held or held[name].shape != (n,) or held[name].dtype != torch.int64
            for name in ROWS
        )
    ):
        raise FuncrobustError(f"{path} is no evaluation that was saved: use another --save")
    return held, metadata
