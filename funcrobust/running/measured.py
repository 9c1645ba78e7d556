"""The classifier that a command measures, and the test images that it is asked about."""

from __future__ import annotations

from typing import NamedTuple

import torch

from funcrobust import data
from funcrobust.core.network.functional import Predict
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import Classifier, load_classifier
from funcrobust.running.dataset import Chosen, chosen_test_images, load_known, require_taken
from funcrobust.running.groups import Measured
from funcrobust.running.machine import pick_dtype, warn_if_emulated
from funcrobust.running.measuring import evaluating


class Ready(NamedTuple):
    """What a classifier is asked about and how, on one device."""

    dataset: data.Dataset
    predict: Predict
    """In evaluation mode, in the precision that the options name."""
    images: Chosen
    """Of the test images, by the seed."""


def load_measured(options: Measured, device: torch.device, reporter: Reporter) -> Classifier:
    """Load the classifier that the options name; warn of a precision that ``device`` emulates."""
    warn_if_emulated(options.precision, device, reporter)
    return load_classifier(
        options.checkpoint, device, reporter, model=options.model, images=options
    )


def make_ready(
    classifier: Classifier, options: Measured, examples: int, device: torch.device,
    reporter: Reporter,
) -> Ready:  # fmt: skip
    """Load the images and choose ``examples`` of them; the classifier is on ``device`` already.

    Raises `FuncrobustError` for images that it does not know, or that its network cannot take.
    """
    model = classifier.model
    dataset = load_known(options, classifier.card, reporter).to(device)
    predict = evaluating(model, model.buffers, pick_dtype(options.precision, device))
    require_taken(predict, model.params, dataset)
    return Ready(dataset, predict, chosen_test_images(dataset, examples, options.seed))
