"""The network that ``cure-train`` begins from: random weights, or a checkpoint's."""

from __future__ import annotations

from dataclasses import replace

from funcrobust import data, models
from funcrobust.checkpoints.loading import fill, model_of, needs_model
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.core.network.functional import Functional, functionalize
from funcrobust.models.registry import names_code
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import Classifier, load_classifier
from funcrobust.running.dataset import require_same_images
from funcrobust.running.machine import pick_device, to_device


def checkpointed(options: CureTrain, reporter: Reporter) -> Classifier | None:
    """Load the checkpoint to begin from, if one is named, as the network that is to be trained.

    That may be another than the checkpoint's own, if its weights fit by name and shape: the
    ``-flip`` of a network, or its ``-silu``.
    """
    name = options.checkpoint
    if name is None:
        return None
    named = needs_model(name) and (names_code(options.model) or model_of(name) is None)
    begun = load_classifier(
        name, pick_device(options.device), reporter, model=options.model if named else None
    )
    if options.model == begun.card.model:
        return begun
    card = replace(begun.card, model=options.model)
    other = models.build(
        card.model, num_classes=card.num_classes, in_channels=card.image_shape[0],
        mean=card.mean, std=card.std,
    )  # fmt: skip
    module = fill(other, begun.module.state_dict(), card.model, begun.file)
    model = to_device(functionalize(module), pick_device(options.device))
    return begun._replace(card=card, module=module, model=model)


def initial(options: CureTrain, dataset: data.Dataset, begun: Classifier | None) -> Functional:
    """Return the network as it is before the first update, on the dataset's device."""
    if begun is not None:
        require_same_images(begun.card, dataset)
        return begun.model
    module = models.build(
        options.model, num_classes=dataset.num_classes, in_channels=dataset.image_shape[0],
        mean=dataset.mean, std=dataset.std, seed=options.seed,
    )  # fmt: skip
    return to_device(functionalize(module), dataset.x_train.device)
