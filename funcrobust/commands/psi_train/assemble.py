"""What ``psi-train`` is put together from: ψ, its anchor, its starts, its batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

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
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.linf import linf
from funcrobust.core.degrading import Degrade, mixed_with
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import per_example
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.lift import training_objective
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.core.training import optimizers, updates
from funcrobust.core.training.schedules import schedule
from funcrobust.core.training.updates import State, Update
from funcrobust.running.measuring import evaluating
from funcrobust.running.processes import processes
from funcrobust.running.restoring import (
    carried,
    degrading,
    gaussian_starts,
    of_class,
    require_equal_shares,
    white,
)


def make_training(
    options: PsiTrain, ball: Ball, model: Functional, dataset: data.Dataset,
    dtype: torch.dtype | None,
) -> tuple[Update, State]:  # fmt: skip
    """Build the update and the state before the first one.

    Of a batch the update takes the rows that are this process's.
    """
    rate = schedule(
        options.lr_schedule, lr_max=options.lr_max, lr_min=options.lr_min,
        total_steps=options.updates,
    )  # fmt: skip
    optim = optimizers.optimizer(
        options.opt, rate, momentum=options.momentum, weight_decay=options.weight_decay,
        clip_norm=options.clip_norm or None,
    )  # fmt: skip
    held = evaluating(model, model.buffers, dtype)
    composition = Composition(options, ball, make_anchor(options, partial(held, model.params)))
    shard = processes().shard
    require_equal_shares(options.drift_fraction, options.batch_size, shard.size)
    objective = training_objective(model.across(shard), composition, dtype=dtype)
    if options.learn_starts:
        if options.learn_starts > len(dataset.y_train):
            raise FuncrobustError(
                f"--learn-starts is {options.learn_starts}, but there are {len(dataset.y_train)} "
                "training images to start from"
            )
        images = data.as_float(dataset.x_train[: options.learn_starts])
        model = replace(model, params=model.params | {STARTS: images / options.starts_rate})
    update = updates.make_update(objective, optim, decay=options.ema or None, across=shard)
    return update, updates.initial_state(model, optim, averaged=options.ema > 0)


@dataclass(frozen=True)
class Batches:
    """``step -> PsiBatch``, drawn without replacement; see `make_batches`."""

    dataset: data.Dataset
    options: PsiTrain
    gaussian: GaussianStarts | None
    degrade: Degrade | None
    """How the images to restore are made worse."""
    mix: Degrade | None
    """How the drift's start is made from x, with --start gaussian or noise."""

    def __call__(self, step: int) -> PsiBatch:
        """Draw the batch of one step."""
        options, draw = self.options, self.drawing("order", step)
        index = self._index(draw)
        x = data.as_float(self._images(step))
        if options.objective != "drift" and self.dataset.mirrored:
            x = flipped(x, draw)
        x, y = _channels_last(x), self.dataset.y_train[index]
        batch = PsiBatch(x, y, y)
        if self.degrade is not None:
            n = carried(options.drift_fraction, len(x))
            worse = self.degrade(x[:n], y[:n], self.drawing("degraded", step))
            batch = batch._replace(degraded=_channels_last(worse))
        if options.anchor and options.anchor_steps == 1 and options.anchor_loss != "clean":
            near = linf(threat_radius(options)).sample(x, self.drawing("near", step))
            batch = batch._replace(near=_channels_last(near))
        return self.drifting(batch, draw, step) if options.drifts else batch

    @cached_property
    def _images(self) -> data.Feed:
        """Of streamed images only this process's rows are decoded, the others are black."""

        def order(step: int) -> Tensor:
            return self._index(self.drawing("order", step))

        return data.feed(self.dataset.x_train, order, shard=processes().shard)

    def _index(self, draw: torch.Generator) -> Tensor:
        n = len(self.dataset.y_train)
        return torch.randperm(n, generator=draw, device=draw.device)[: self.options.batch_size]

    def drifting(self, batch: PsiBatch, draw: torch.Generator, step: int) -> PsiBatch:
        """Add where the drift's ψ starts, and the label that it goes toward or from."""
        options, x, y = self.options, batch.x, batch.y
        if options.learn_starts:
            chosen = torch.randperm(options.learn_starts, generator=draw, device=y.device)[: len(y)]
            return batch._replace(label=self.dataset.y_train[chosen], chosen=chosen)
        label = labels_for(y, options.label, self.dataset.num_classes, draw)
        batch = batch._replace(label=label)
        if options.start == "made":
            start, stops = self.approached(label, step)
            return batch._replace(start=start, stops=stops)
        if self.mix is None:
            return batch
        return batch._replace(start=_channels_last(self.mix(x, y, self.drawing("start", step))))

    def approached(self, label: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gaussian starts for the labels, and how many steps each is to walk."""
        assert self.gaussian is not None
        draw = self.drawing("start", step)
        low, high = STOPS
        stops = torch.randint(low, high + 1, label.shape, generator=draw, device=label.device)
        return _channels_last(self.gaussian(label, draw)), stops

    def drawing(self, purpose: str, step: int) -> torch.Generator:
        """Return the generator of one purpose at one step."""
        return generator(self.options.seed, f"psi/{purpose}", step, self.dataset.y_train.device)


def flipped(x: Tensor, draw: torch.Generator) -> Tensor:
    """Mirror each image (N, C, H, W) left to right with probability 1/2."""
    mirror = torch.rand(len(x), generator=draw, device=x.device) < 0.5
    return torch.where(per_example(mirror, x), x.flip(-1), x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def make_batches(options: PsiTrain, dataset: data.Dataset) -> Batches:
    """Build the batches."""
    mixes = options.restore > 0 and options.mixed > 0
    drawn = mixes or (options.drifts and options.begins in ("made", "gaussian"))
    gaussian = gaussian_starts(dataset) if drawn else None
    mix: Degrade | None = None
    if options.drifts and options.begins in ("gaussian", "noise"):
        other = white if options.begins == "noise" else of_class(gaussian)
        mix = mixed_with(other, options.start_noise)
    degrade = degrading(options, gaussian) if options.restore else None
    return Batches(dataset, options, gaussian, degrade, mix)


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
