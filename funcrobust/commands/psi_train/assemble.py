"""What ``psi-train`` is put together from: ψ, its anchor, its starts, its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.commands.psi_train.compose import (
    STARTS,
    STOPS,
    Composition,
    PsiBatch,
    make_anchor,
    threat_radius,
)
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.lift import training_objective
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.core.training import updates
from funcrobust.core.training.schedules import schedule
from funcrobust.core.training.updates import State, Update
from funcrobust.running.measuring import evaluating
from funcrobust.running.options import PsiOptions

KINDS = ("own", "made", "gaussian", "noise")
ANCHORS = ("keep", "clean", "robust", "both")


def make_training(
    options: PsiOptions, ball: Ball, model: Functional, dataset: data.Dataset,
    dtype: torch.dtype | None,
) -> tuple[Update, State]:  # fmt: skip
    """Build the update and the state before the first one."""
    rate = schedule(
        options.lr_schedule, lr_max=options.lr_max, lr_min=options.lr_min,
        total_steps=options.updates,
    )  # fmt: skip
    optim = updates.optimizer(
        options.opt, rate, momentum=options.momentum, weight_decay=options.weight_decay,
        clip_norm=options.clip_norm or None,
    )  # fmt: skip
    held = evaluating(model, model.buffers, dtype)
    composition = Composition(options, ball, make_anchor(options, partial(held, model.params)))
    objective = training_objective(model, composition, dtype=dtype)
    if options.learn_starts:
        if options.learn_starts > len(dataset.y_train):
            raise FuncrobustError(
                f"learn-starts is {options.learn_starts}, but there are {len(dataset.y_train)} "
                "training images to start from"
            )
        images = data.as_float(dataset.x_train[: options.learn_starts])
        model = replace(model, params=model.params | {STARTS: images / options.starts_rate})
    return updates.make_update(objective, optim), updates.initial_state(model, optim)


@dataclass(frozen=True)
class Batches:
    """``step -> PsiBatch``, drawn without replacement."""

    dataset: data.Dataset
    options: PsiOptions
    gaussian: GaussianStarts | None = field(default=None, repr=False)

    def __call__(self, step: int) -> PsiBatch:
        """Draw the batch of one step."""
        options, device = self.options, self.dataset.y_train.device
        draw = generator(options.seed, "psi/order", step, device)
        n = len(self.dataset.y_train)
        index = torch.randperm(n, generator=draw, device=device)[: options.batch_size]
        x = data.as_float(self.dataset.x_train[index]).contiguous(memory_format=torch.channels_last)
        y = self.dataset.y_train[index]
        if options.learn_starts:
            chosen = torch.randperm(options.learn_starts, generator=draw, device=device)[: len(y)]
            return PsiBatch(x, self.dataset.y_train[chosen], y, chosen=chosen)
        label = labels_for(y, options.label, self.dataset.num_classes, draw)
        if options.start == "own":
            return PsiBatch(x, label, y)
        if options.start == "made":
            start, stops = self.approached(label, step)
            return PsiBatch(x, label, y, start, stops)
        return PsiBatch(x, label, y, self.degraded(x, y, step))

    def approached(self, label: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gaussian starts for the labels, and how many steps each is to walk."""
        assert self.gaussian is not None
        draw = generator(self.options.seed, "psi/start", step, label.device)
        low, high = STOPS
        stops = torch.randint(low, high + 1, label.shape, generator=draw, device=label.device)
        starts = self.gaussian(label, draw)
        return starts.contiguous(memory_format=torch.channels_last), stops

    def degraded(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """(1 − s)·x + s·n per image, s uniform in [0, start_noise], n noise or a class Gaussian."""
        draw = generator(self.options.seed, "psi/start", step, x.device)
        share = self.options.start_noise * torch.rand(
            (len(x), 1, 1, 1), generator=draw, device=x.device
        )
        if self.gaussian is None:
            other = torch.rand(x.shape, generator=draw, device=x.device)
        else:
            other = self.gaussian(y, draw)
        mixed: Tensor = (1 - share) * x + share * other
        return mixed.contiguous(memory_format=torch.channels_last)


def make_batches(options: PsiOptions, dataset: data.Dataset) -> Batches:
    """Build the batches."""
    drawn = options.start in ("made", "gaussian")
    return Batches(dataset, options, gaussian_starts(dataset) if drawn else None)


def gaussian_starts(dataset: data.Dataset) -> GaussianStarts:
    """Take a sixth of CIFAR-10: plenty for a class's mean and covariance."""
    return GaussianStarts(data.as_float(dataset.x_train[:8000]), dataset.y_train[:8000])


def labels_for(y: Tensor, label: str, num_classes: int, draw: torch.Generator) -> Tensor:
    """Return the labels that ψ moves toward or from: the image's own, random ones, or one class."""
    if label == "own":
        return y
    if label == "random":
        return torch.randint(num_classes, y.shape, generator=draw, device=y.device)
    if label.isdecimal() and int(label) < num_classes:
        return torch.full_like(y, int(label))
    raise FuncrobustError(
        f"label must be own, random or a class number below {num_classes}, got {label!r}"
    )


def check(options: PsiOptions) -> None:
    """Refuse what cannot work, before anything is loaded."""
    for name in (
        "aim", "anchor", "lr_max", "momentum", "weight_decay", "clip_norm", "entropy",
        "start_noise", "starts_rate", "drift_weight",
    ):  # fmt: skip
        require_finite(name.replace("_", "-"), getattr(options, name))
    require_finite("epsilon", threat_radius(options))
    for name in ("updates", "batch_size", "heldout_examples"):
        require_count(name, getattr(options, name), minimum=1)
    require_count("anchor-steps", options.anchor_steps, minimum=1)
    _pick("anchor-loss", options.anchor_loss, dict.fromkeys(ANCHORS))
    require_count("learn-starts", options.learn_starts)
    require_count("strips", options.strips)
    if options.steps == 0:
        raise FuncrobustError("psi with 0 steps never moves: its drift is 0 for every network")
    _pick("start", options.start, dict.fromkeys(KINDS))
    if options.start_noise > 1:
        raise FuncrobustError(f"start-noise is a share in [0, 1], got {options.start_noise}")
    if options.learn_starts and options.starts_rate == 0:
        raise FuncrobustError("starts-rate must be positive, or the start images never move")
    if options.learn_starts and (options.start in ("gaussian", "noise") or options.label != "own"):
        raise FuncrobustError("--learn-starts takes the place of --start and --label")


Chosen = TypeVar("Chosen")


def _pick(what: str, name: str, known: Mapping[str, Chosen]) -> Chosen:
    if name not in known:
        raise FuncrobustError(f"unknown {what} {name!r}: use {', '.join(known)}")
    return known[name]
