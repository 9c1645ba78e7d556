"""The classifiers that commands start from and leave behind."""

from __future__ import annotations

import torch
from torch import nn

from funcrobust import checkpoints
from funcrobust.checkpoints import Card, save
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Params
from funcrobust.report.runs import RunFolder

CHECKPOINT_FILE = "checkpoint.safetensors"

STRONGEST = "cifar10-linf-small"
"""The shipped classifier to measure, to transfer and to draw with."""

JUDGE = "cifar10-standard-small"
"""The shipped standard classifier, which made none of the images it judges."""


def default_checkpoint(preferred: str) -> str:
    """Return the preferred shipped classifier's name, or another's if it is not there."""
    shipped = checkpoints.shipped()
    if not shipped:
        raise FuncrobustError(
            "no classifier is shipped here: train one with cure-train, and name its run folder"
        )
    return preferred if preferred in shipped else next(iter(shipped))


def save_checkpoint(
    run: RunFolder, params: Params, buffers: Buffers, card: Card, name: str = CHECKPOINT_FILE
) -> None:
    """Write parameters, buffers and card into the run folder."""
    save(run.file(name), {**params, **buffers}, card)


def pick_judge(name: str | None, drawer: str, card: Card, device: torch.device) -> nn.Module | None:
    """Load the independent classifier; the shipped one where it knows the same images."""
    if name == "none" or (name is None and JUDGE not in checkpoints.shipped()):
        return None
    judge, its_card = checkpoints.load(name or JUDGE)
    same = (its_card.image_shape, its_card.num_classes) == (card.image_shape, card.num_classes)
    if name is None and not (same and its_card.dataset == card.dataset != "unknown"):
        return None
    if not same:
        raise FuncrobustError(f"the judge {name} knows other images or classes than {drawer}")
    return judge.to(device)
