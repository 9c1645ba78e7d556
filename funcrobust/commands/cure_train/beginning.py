"""The network that ``cure-train`` begins from: random weights, or a checkpoint's."""

from __future__ import annotations

from dataclasses import replace

from funcrobust import data, models
from funcrobust.checkpoints import is_zoo
from funcrobust.checkpoints.loading import build, fill, model_of
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.core.network.functional import Functional, functionalize
from funcrobust.models.registry import names_code
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import Classifier, load_classifier
from funcrobust.running.dataset import require_same_images
from funcrobust.running.machine import pick_device, to_device
from funcrobust.running.threat import written_threat


def checkpointed(options: CureTrain, reporter: Reporter) -> Classifier | None:
    """Load the checkpoint to begin from, if one is named, as the network that is to be trained.

    That may be another than the checkpoint's own, if its weights fit by name and shape: the
    ``-flip`` of a network, or its ``-silu``.
    """
    name = options.checkpoint
    if name is None:
        return None
    device = pick_device(options.device)
    own = None if is_zoo(name) else model_of(name)
    named = not is_zoo(name) and (own is None or (names_code(own) and names_code(options.model)))
    begun = load_classifier(name, device, reporter, model=options.model if named else None)
    card = begun.card
    if card.dataset != "unknown" and card.constraint != options.constraint:
        reporter.say(
            f"{name} was trained in {written_threat(card.constraint, card.epsilon)}; it is trained "
            f"further in {written_threat(options.constraint, options.epsilon)}"
        )
    if options.model == card.model:
        return begun
    card = replace(card, model=options.model)
    module = fill(build(card), begun.module.state_dict(), card.model, begun.file)
    model = to_device(functionalize(module), device)
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


def deviation(dataset: data.Dataset, begun: Classifier | None) -> tuple[float, ...]:
    """Return what the network divides images by; the data's, of one that does so by itself."""
    if begun is None or not isinstance(begun.module, models.Normalized):
        return dataset.std
    return begun.card.std
