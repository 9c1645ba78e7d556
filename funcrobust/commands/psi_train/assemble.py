"""What ``psi-train`` is put together from: ψ, its anchor, its starts, its batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.commands.psi_train.compose import (
    STARTS,
    STOPS,
    Composition,
    PsiBatch,
    make_anchor,
)
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.lift import training_objective
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.core.training import updates
from funcrobust.core.training.schedules import schedule
from funcrobust.core.training.updates import State, Update
from funcrobust.running.measuring import evaluating


def make_training(
    options: PsiTrain, ball: Ball, model: Functional, dataset: data.Dataset,
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
                f"--learn-starts is {options.learn_starts}, but there are {len(dataset.y_train)} "
                "training images to start from"
            )
        images = data.as_float(dataset.x_train[: options.learn_starts])
        model = replace(model, params=model.params | {STARTS: images / options.starts_rate})
    return updates.make_update(objective, optim), updates.initial_state(model, optim)


@dataclass(frozen=True)
class Batches:
    """``step -> PsiBatch``, drawn without replacement."""

    dataset: data.Dataset
    options: PsiTrain
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


def make_batches(options: PsiTrain, dataset: data.Dataset) -> Batches:
    """Build the batches."""
    drawn = options.begins in ("made", "gaussian")
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
        f"--label must be own, random or a class number below {num_classes}, got {label!r}"
    )
