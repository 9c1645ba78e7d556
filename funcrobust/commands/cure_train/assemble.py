"""What ``cure-train`` trains: model, data order, update and state, put together from options.

The recipe drives it and the benchmarks time it, so both run the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from funcrobust import checkpoints, data
from funcrobust.commands.cure_train import compose
from funcrobust.commands.cure_train.beginning import deviation, initial
from funcrobust.commands.cure_train.compose import Composition
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.commands.cure_train.presets import PRESETS
from funcrobust.core.attacks import Attack
from funcrobust.core.balls.ball import Ball
from funcrobust.core.degrading import Degrade
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import recalibrated
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import Buffers, Functional, Params, autocast, functionalize
from funcrobust.core.objectives.lift import Batch, Metrics, training_objective
from funcrobust.core.randomness import generator, key
from funcrobust.core.shards import Shard
from funcrobust.core.training import optimizers, updates
from funcrobust.core.training.schedules import Schedule, schedule
from funcrobust.core.training.updates import State, Update
from funcrobust.data.progress import Progress, silent
from funcrobust.running.classifier import Classifier
from funcrobust.running.dataset import rehearse, require_mirrored, require_same_images
from funcrobust.running.machine import pick_dtype, to_device
from funcrobust.running.processes import processes
from funcrobust.running.restoring import (
    carried,
    degrading,
    gaussian_starts,
    require_equal_shares,
)
from funcrobust.running.threat import pick_ball

Prepare = Callable[..., Update]
"""``(update, state=, batch=) -> update``: where an update may be compiled and checked."""


@dataclass(frozen=True)
class Training:
    """A training that is ready to run from ``state``: ``steps`` updates on ``batches(step)``."""

    model: Functional
    ball: Ball
    batches: Batches
    state: State
    steps: int
    rate: Schedule
    dtype: torch.dtype | None
    update: Callable[[Prepare], Update]
    """Builds the update, with each of its (one or two) pure parts handed through ``Prepare``. Of a
    batch it takes the rows that are this process's."""


def assemble(
    options: CureTrain, dataset: data.Dataset, progress: Progress = silent,
    begun: Classifier | None = None,
) -> Training:  # fmt: skip
    """Build the training that ``options`` describe, on the dataset's device.

    From random weights, or from those of ``begun``, which normalises images as it is used to.
    """
    device = dataset.x_train.device
    dtype = pick_dtype(options.precision, device)
    ball = pick_ball(options.constraint, options.epsilon)
    attack = compose.training_attack(options, ball)
    model = initial(options, dataset, begun)
    rehearse(model, dataset)
    shard = processes().shard
    per_epoch = _steps_per_epoch(options, dataset)
    batches = Batches(dataset, ball, attack, options, per_epoch, shard)
    steps = options.epochs * batches.steps_per_epoch
    rate = schedule(
        options.lr_schedule, lr_max=options.lr_max, lr_min=options.lr_min, total_steps=steps
    )
    optim = optimizers.optimizer(
        options.opt, rate, momentum=options.momentum, weight_decay=options.weight_decay,
        nesterov=True,
    )  # fmt: skip
    state = updates.initial_state(model, optim, averaged=options.ema > 0)
    composition = Composition(
        options,
        ball,
        attack,
        input_scale(options, deviation(dataset, begun)),
        _helper_labels(options, dataset, dtype, progress),
    )

    require_equal_shares(options.cure_fraction, options.batch_size, shard.size)
    objective = training_objective(model.across(shard), composition, dtype=dtype)

    def update(prepare: Prepare) -> Update:
        made = updates.make_update(objective, optim, decay=options.ema or None, across=shard)
        kinds = [shard.rows(batches(step)) for step in range(min(2, options.cycle))]
        return by_batch(*(prepare(made, state=state, batch=batch) for batch in kinds))

    return Training(model, ball, batches, state, steps, rate, dtype, update)


CALIBRATION, CALIBRATING = 40, 5120
"""Batches behind the batch-norm statistics of an average, and images in them, at most: 2 to 5 % of
an epoch's time. (40 batches of 1024 are eight tenths of one.)"""


def calibration(batch_size: int) -> int:
    """Return how many batches of this size the statistics are taken over."""
    return min(CALIBRATION, -(-CALIBRATING // batch_size))


def evaluated(
    training: Training, state: State, advance: Callable[[int], None] = lambda _: None
) -> tuple[Params, Buffers]:
    """Return the weights to measure and keep, with batch-norm statistics that fit them.

    The average if one is kept. Its statistics are taken anew over training batches (`calibration`)
    as the training saw them: perturbed images, by the attack's own rules. ``advance(1)`` is called
    after each.
    """
    params, buffers = updates.averaged(state)
    if not state.average:
        return params, buffers
    attack = training.batches.attack
    model, dtype, batches = training.model, training.dtype, training.batches.whole()

    def seen(step: int) -> Tensor:
        batch = batches(step)
        advance(1)
        if attack is None or batch.start is None:
            return batch.x
        loss = cross_entropy(autocast(model.by_batch(buffers, key=batch.key), dtype))
        return attack.perturb(loss)(params, batch.start, batch.y, center=batch.x)

    # Of the steps to come, whose randomness is counted too: the same after a resumption.
    steps = range(int(state.step), int(state.step) + calibration(batches.options.batch_size))
    return params, recalibrated(model, params, buffers, map(seen, steps))


def require_fitting(options: CureTrain, dataset: data.Dataset) -> None:
    """Refuse a --padding that would do nothing or leave nothing, and mirror images of digits."""
    usual = PRESETS[options.preset].get("padding", CureTrain.padding)
    if options.padding not in (0, usual) and not data.is_cropped(dataset):
        why = "streamed" if dataset.mirrored else "of what may not be mirrored"
        raise FuncrobustError(
            f"--padding {options.padding} does nothing: the images of {dataset.name} are {why}, "
            "and not shifted"
        )
    side = min(dataset.image_shape[1:])
    if options.padding >= side and data.is_cropped(dataset):
        raise FuncrobustError(
            f"--padding {options.padding} could shift an image out of its {side} pixels: take less"
        )
    require_mirrored(options.model, dataset)


def _steps_per_epoch(options: CureTrain, dataset: data.Dataset) -> int:
    steps = len(dataset.y_train) // options.batch_size
    if steps == 0:
        raise FuncrobustError(
            f"the batch size {options.batch_size} exceeds the {len(dataset.y_train)} training "
            "images: choose a smaller --batch-size"
        )
    return steps


def by_batch(update: Update, otherwise: Update | None = None) -> Update:
    """Take ``update`` where regularisers are due, and ``otherwise`` where not.

    The batch tells: for an update without them it holds nothing that they would look at.
    """
    if otherwise is None:
        return update

    def alternating(state: State, batch: Batch) -> tuple[State, Metrics]:
        return (update if batch.regularised else otherwise)(state, batch)

    return alternating


@dataclass
class Batches:
    """``step -> Batch``, with the random parts that its terms use.

    Every random number is counted from (seed, purpose, step). Of streamed images only the rows that
    are the ``shard``'s are decoded, the others are black.
    """

    dataset: data.Dataset
    ball: Ball
    attack: Attack | None
    options: CureTrain
    steps_per_epoch: int
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        # Two epochs: at the end of one the images of the next are decoded already.
        self._epoch = lru_cache(2)(self._order)
        self._images = data.training_feed(
            self.dataset, self._indices, self.options.seed, padding=self.options.padding,
            shard=self.shard,
        )  # fmt: skip
        # Not the crops, which have black borders: those would be drawn too.
        self._uncropped = data.feed(self.dataset.x_train, self._carrying, shard=self.shard)
        total = self.options.epochs * self.steps_per_epoch
        self._growth = compose.Growth(self.options.h_schedule, total)
        self._points = compose.points_of(self.options)
        self._degrade: Degrade | None = None
        if self.options.restore:
            gaussian = gaussian_starts(self.dataset) if self.options.mixed else None
            self._degrade = degrading(self.options, gaussian)

    def __call__(self, step: int) -> Batch:
        """Draw the batch of one step."""
        device = self.dataset.x_train.device
        x, y = self._images(step), self.dataset.y_train[self._indices(step)]
        seed = self.options.seed
        x = data.as_float(x).contiguous(memory_format=torch.channels_last)
        masks = key(seed, "dropout", step, device)
        batch = Batch(x, y, key=masks, regularised=step % self.options.cycle == 0)
        if self.attack is not None:
            start = self.attack.start(x, generator(seed, "start", step, device))
            batch = batch._replace(start=start)
        return self._regularised(batch, step) if batch.regularised else batch

    def _regularised(self, batch: Batch, step: int) -> Batch:
        """Add what the regularisers need."""
        x, y, device, seed = batch.x, batch.y, batch.x.device, self.options.seed
        batch = batch._replace(growth=self._growth(step, device))
        if self.options.delta == "random":
            draw = generator(seed, "noise", step, device)
            batch = batch._replace(noise=2 * torch.rand(x.shape, generator=draw, device=device) - 1)
        if self._points:
            draw = generator(seed, "points", step, device)
            points = torch.stack([self.ball.sample(x, draw) for _ in range(self._points)], 1)
            mix = torch.rand(len(x), generator=draw, device=device)
            batch = batch._replace(points=points, mix=mix)
        if self._degrade is not None:
            whole = data.as_float(self._uncropped(step))
            draw = generator(seed, "degraded", step, device)
            degraded = self._degrade(whole, y[: len(whole)], draw)
            batch = batch._replace(restored=(whole, degraded))
        return batch

    def whole(self) -> Batches:
        """Return batches whose rows are all there, for what every process computes."""
        return self if self.shard.size == 1 else replace(self, shard=Shard())

    def _indices(self, step: int) -> Tensor:
        epoch, i = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[i]

    def _order(self, epoch: int) -> list[Tensor]:
        device = self.dataset.y_train.device
        draw = generator(self.options.seed, "order", epoch, device)
        n = len(self.dataset.y_train)
        return list(data.batches(n, self.options.batch_size, draw))

    def _carrying(self, step: int) -> Tensor:
        """The images that carry the restoration."""
        index = self._indices(step)
        return index[: carried(self.options.cure_fraction, len(index))]


def input_scale(options: CureTrain, std: Sequence[float]) -> float:
    """Return what a length in the network's normalised input space is in pixel units: mean σ.

    The document's code perturbs inputs that are already divided by their standard deviation σ.
    There z has length h, here h·σ; and its gradients are σ times ours, hence λ·σ. With h = 3,
    λ = 10 taken as pixel units instead, training does not leave chance level in its first epoch
    (10 % against 35 % clean, preact-tiny).
    """
    if options.units == "pixel":
        return 1.0
    return sum(std) / len(std)


def _helper_labels(
    options: CureTrain, dataset: data.Dataset, dtype: torch.dtype | None, progress: Progress
) -> Callable[[Tensor], Tensor] | None:
    """Decisions of HAT's standard network, which must know the same images and classes."""
    if options.hat == 0:
        return None
    module, card = checkpoints.load(str(options.helper), progress=progress)
    require_same_images(card, dataset)
    standard = to_device(functionalize(module), dataset.x_train.device)
    predict = autocast(standard.predict, dtype)
    return lambda x: predict(standard.params, x).argmax(-1)
