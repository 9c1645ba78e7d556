"""What an evaluation is of: a network, the images asked about, and the ball around each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.commands.evaluate import attacking
from funcrobust.commands.evaluate.aiming import aim
from funcrobust.commands.evaluate.draws import mean_of_draws
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.core.balls.ball import Ball
from funcrobust.core.network.functional import Params, Predict, autocast
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import Classifier
from funcrobust.running.groups import of_another_norm, require_norm_of
from funcrobust.running.heading import measured
from funcrobust.running.machine import pick_device, pick_dtype, pick_precision, warn_if_emulated
from funcrobust.running.measured import load_measured, make_ready
from funcrobust.running.threat import pick_ball, written_threat


@dataclass(frozen=True)
class Subject:
    """See above; rows of n images each."""

    classifier: Classifier
    constraint: str
    epsilon: float
    ball: Ball
    dataset: data.Dataset
    predict: Predict
    dtype: torch.dtype | None
    numbers: Tensor
    """Of the images in the test set."""
    x: Tensor
    labels: Tensor
    y: Tensor
    """The labels, or the classes that a targeted evaluation aims at."""

    @property
    def params(self) -> Params:
        """The network's."""
        return self.classifier.model.params


def subject_of(options: Evaluate, reporter: Reporter) -> Subject:
    """Load the network and the images that are asked about."""
    device = pick_device(options.device)
    if options.search is not None:
        warn_if_emulated(options.search, device, reporter)
    classifier = load_measured(options, device, reporter)
    constraint, epsilon = _threat(options, classifier, reporter)
    ball = pick_ball(constraint, epsilon)
    dataset, predict, (numbers, x, labels) = make_ready(
        classifier, options, options.examples, device, reporter
    )
    model, dtype = classifier.model, pick_dtype(options.precision, device)
    if options.draws is not None:
        predict = autocast(mean_of_draws(model, options.draws, options.seed, x[:2]), dtype)
    y = labels
    if options.target is not None:
        kept, y = aim(
            options.target, predict, model.params, dataset, numbers, x, labels, options.seed
        )
        numbers, x, labels = numbers[kept], x[kept], labels[kept]
    return Subject(
        classifier, constraint, epsilon, ball, dataset, predict, dtype, numbers, x, labels, y
    )


def _threat(options: Evaluate, classifier: Classifier, reporter: Reporter) -> tuple[str, float]:
    """Return the constraint and ε asked for, the card's unless others are."""
    card = classifier.card
    constraint = options.constraint or card.constraint
    if not options.autoattack:
        require_norm_of(options.attack, constraint)
    if constraint != card.constraint and options.epsilon is None:
        raise of_another_norm("the checkpoint's ", card.epsilon, card.constraint, constraint)
    epsilon = card.epsilon if options.epsilon is None else options.epsilon
    if card.dataset == "unknown" and options.epsilon is None:
        said = written_threat(constraint, epsilon)
        reporter.say(f"no threat model is known of it: {said}, unless --epsilon says another")
    return constraint, epsilon


def settings_of(options: Evaluate, subject: Subject, attacks: list[str]) -> dict[str, Any]:
    """Return all that an evaluation's outcome depends on: who goes on with one, goes on with it."""
    device = subject.y.device
    search = None if options.search is None else pick_precision(options.search, device)
    return {
        **measured(
            subject.classifier, subject.dataset, len(subject.y), options.seed, options.precision,
            device,
        ),
        "attack": "autoattack" if options.autoattack else options.attack, "attacks": attacks,
        "constraint": subject.constraint, "epsilon": subject.epsilon, "steps": options.steps,
        "restarts": options.restarts,
        "step_size": attacking.recorded_step_size(options, subject.ball), "search": search,
        "target": options.target, "draws": options.draws,
    }  # fmt: skip
