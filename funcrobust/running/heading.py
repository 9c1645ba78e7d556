"""What the JSON of every command that measures a classifier begins with."""

from __future__ import annotations

from typing import Any

import torch

from funcrobust import data
from funcrobust.environment import versions
from funcrobust.running.classifier import Classifier
from funcrobust.running.groups import Precision
from funcrobust.running.machine import pick_precision


def measured(
    classifier: Classifier, dataset: data.Dataset, examples: int, seed: int, precision: Precision,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Return what was measured: the network, how many images of which set, from which seed.

    To be asked before the measuring: a run's file may hold another network after it. ``precision``
    is what was taken: what auto stands for depends on the machine.
    """
    return {
        "checkpoint": classifier.name, "sha256": classifier.sha256, "model": classifier.card.model,
        "dataset": dataset.name, "examples": examples, "seed": seed,
        "precision": pick_precision(precision, device),
    }  # fmt: skip


def heading(
    classifier: Classifier, dataset: data.Dataset, examples: int, seed: int, precision: Precision,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Return both: what is measured, and on what."""
    return measured(classifier, dataset, examples, seed, precision, device) | measured_on(device)


def measured_on(device: torch.device) -> dict[str, Any]:
    """Return on what it was measured."""
    return {"device": str(device), "versions": versions(("funcrobust", "torch"))}
