"""``cure-train``: fast adversarial training with curvature regularisation, start to finish."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcrobust import data, models, updates
from funcrobust.balls import Ball
from funcrobust.checkpoints import Card
from funcrobust.errors import FuncrobustError, require_count, require_finite
from funcrobust.functional import Functional, functionalize
from funcrobust.losses import Loss, cross_entropy
from funcrobust.perturbations import Perturbation, fgsm, pgd
from funcrobust.randomness import generator
from funcrobust.recipes import common
from funcrobust.recipes.loop import Outcome, Plan, Record, drive, load_state
from funcrobust.recipes.options import CureOptions
from funcrobust.report import plots
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.report.sinks import open_sink
from funcrobust.schedules import schedule
from funcrobust.training import Attack, cure_training
from funcrobust.updates import State


@dataclass(frozen=True)
class Result:
    """What a finished recipe hands back."""

    run: RunFolder
    status: str
    metrics: dict[str, float]


def cure_train(options: CureOptions, reporter: Reporter, *, resume: Path | None = None) -> Result:
    """Train a robust classifier; leave it, its card, curves and pictures in a run folder."""
    device = common.pick_device(options.device)
    dtype = common.pick_dtype(options.precision)
    ball = common.pick_ball(options.constraint, options.epsilon)
    attack = make_attack(options, ball)
    _check(options)
    reporter.say(_headline(options, device))
    dataset = common.load_data(options, device, reporter)
    module = models.build(
        options.model, num_classes=dataset.num_classes, in_channels=dataset.image_shape[0],
        mean=dataset.mean, std=dataset.std, seed=options.seed,
    )  # fmt: skip
    model = common.to_device(functionalize(module), device)
    common.rehearse(model, dataset)
    steps_per_epoch = len(dataset.y_train) // options.batch_size
    if steps_per_epoch == 0:
        raise FuncrobustError(
            f"the batch size {options.batch_size} exceeds the {len(dataset.y_train)} training "
            "images: choose a smaller --batch-size"
        )
    scale = input_scale(options, dataset)
    # The fgsm direction's norm is squared, so its λ scales with σ².
    lam = options.lam * (scale**2 if options.delta.lower() == "fgsm" else scale)
    objective = cure_training(
        model, attack, lam=lam, h=options.h * scale,
        direction=options.delta.lower(), fraction=options.cure_fraction,
        label_smoothing=options.label_smoothing,
        batch_statistics=options.attack_statistics == "batch", dtype=dtype,
    )  # fmt: skip
    rate = schedule(
        options.lr_schedule, lr_max=options.lr_max, lr_min=options.lr_min,
        total_steps=options.epochs * steps_per_epoch,
    )  # fmt: skip
    optim = updates.optimizer(
        options.opt, rate, momentum=options.momentum, weight_decay=options.weight_decay,
        nesterov=True,
    )  # fmt: skip
    state = updates.initial_state(model, optim)
    if resume is not None:
        run = RunFolder.open(resume)
        state = load_state(run, state)
        if int(state.step) >= options.epochs * steps_per_epoch:
            raise FuncrobustError(f"{resume} is complete: there is nothing left to resume")
        run.truncate_metrics(lambda record: record["step"] <= int(state.step))
    else:
        run = RunFolder.create(options.out, "cure-train", common.config(options), options.name)
    reporter.attach(run.file("console.log"))

    def examine(_: int, state: State) -> Record:
        predict = common.evaluating(model, state.buffers, dtype)
        record: Record = {"lr": float(rate(state.step))}
        for split, x, y in (
            ("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test),
        ):  # fmt: skip
            n = options.robust_examples
            found = common.measure(
                predict, state.params, x[:n], y[:n], reporter, ball=ball, steps=10,
                seed=options.seed, title=f"PGD-10, {split}",
            )  # fmt: skip
            record |= {f"{split}_{name}": value for name, value in found.items()}
        return record

    batches = Batches(dataset, ball, options, steps_per_epoch)
    update = updates.make_update(objective, optim)
    plan = Plan(
        update=common.maybe_compile(update, options, reporter, state, *batches(0)),
        batch=batches,
        steps=options.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=options.batch_size,
        examine=examine,
        watch_collapse=attack is not None,
    )
    began = time.perf_counter()
    outcome = drive(plan, state, run, reporter, open_sink(options.log, run, "cure-train"))
    seconds = time.perf_counter() - began
    return _finish(options, model, dataset, ball, run, outcome, seconds, reporter, dtype)


@dataclass
class Batches:
    """``step -> (x, y, start)``, and noise for CURE's random direction.

    Every random number is counted from (seed, purpose, step).
    """

    dataset: data.Dataset
    ball: Ball
    options: CureOptions
    steps_per_epoch: int
    _order: tuple[int, list[Tensor]] = (-1, [])

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Draw the batch of one step."""
        device = self.dataset.x_train.device
        index = self._indices(step)
        x, y = self.dataset.x_train[index], self.dataset.y_train[index]
        seed = self.options.seed
        if self.dataset.name not in ("digits", "svhn"):  # a mirrored 2 is no digit
            x = data.flip_and_crop(x, generator(seed, "augment", step, device))
        x = data.as_float(x).contiguous(memory_format=torch.channels_last)
        start = x
        if self.options.delta_init == "random":
            start = self.ball.sample(x, generator(seed, "start", step, device))
        if self.options.delta != "random":
            return x, y, start
        draw = generator(seed, "noise", step, device)
        return x, y, start, 2 * torch.rand(x.shape, generator=draw, device=device) - 1

    def _indices(self, step: int) -> Tensor:
        epoch, i = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            device = self.dataset.y_train.device
            draw = generator(self.options.seed, "order", epoch, device)
            n = len(self.dataset.y_train)
            self._order = (epoch, list(data.batches(n, self.options.batch_size, draw)))
        return self._order[1][i]


def make_attack(options: CureOptions, ball: Ball) -> Attack | None:
    """Build the training attack named by ``--attack``."""
    name = options.attack.lower()
    alpha = 1.25 * options.epsilon if options.alpha is None else options.alpha
    require_finite("alpha", alpha)

    def one(loss: Loss) -> Perturbation:
        return fgsm(loss, ball, step_size=alpha)

    def many(loss: Loss) -> Perturbation:
        steps = require_count("attack_steps", options.attack_steps)
        return pgd(loss, ball, step_size=options.epsilon / 4, steps=steps)

    attacks: dict[str, Attack | None] = {"fgsm": one, "pgd": many, "none": None}
    if name not in attacks:
        raise FuncrobustError(f"unknown attack {options.attack!r}: use fgsm, pgd or none")
    return attacks[name]


def input_scale(options: CureOptions, dataset: data.Dataset) -> float:
    """Return what a length in the network's normalised input space is in pixel units: mean σ.

    The document's code perturbs inputs that are already divided by their standard deviation σ.
    There z has length h, here h·σ; and its gradients are σ times ours, hence λ·σ. With h = 3,
    λ = 10 taken as pixel units instead, training does not leave chance level in its first epoch
    (10 % against 35 % clean, preact-tiny).
    """
    if options.units == "pixel":
        return 1.0
    return sum(dataset.std) / len(dataset.std)


def _check(options: CureOptions) -> None:
    require_finite("h", options.h)
    require_finite("lambda", options.lam)
    require_finite("momentum", options.momentum)
    require_finite("weight_decay", options.weight_decay)
    require_count("epochs", options.epochs, minimum=1)
    require_count("batch_size", options.batch_size, minimum=2)
    require_count("robust_examples", options.robust_examples, minimum=1)
    choices = {
        "delta": ("classic", "random", "fgsm", "none"),
        "delta_init": ("random", "zero"),
        "units": ("normalized", "pixel"),
        "attack_statistics": ("running", "batch"),
    }
    for name, known in choices.items():
        if str(getattr(options, name)).lower() not in known:
            flag = name.replace("_", "-")
            raise FuncrobustError(
                f"unknown --{flag} {getattr(options, name)!r}: use {', '.join(known)}"
            )
    if not 0 < options.cure_fraction <= 1:
        raise FuncrobustError(f"cure-fraction must be in (0, 1], got {options.cure_fraction}")
    if not 0 <= options.label_smoothing < 1:
        raise FuncrobustError(f"label-smoothing must be in [0, 1), got {options.label_smoothing}")


def _headline(options: CureOptions, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return (
        f"preset {options.preset} on {name}: {options.model}, {options.epochs} epochs of batch "
        f"{options.batch_size}, {options.opt} {options.lr_schedule} lr {options.lr_max:g}, "
        f"{options.attack} ε = {options.epsilon:.4g}, CURE {options.delta} h = {options.h:g} "
        f"λ = {options.lam:g}, {options.precision}"
    )


def _finish(
    options: CureOptions,
    model: Functional,
    dataset: data.Dataset,
    ball: Ball,
    run: RunFolder,
    outcome: Outcome,
    seconds: float,
    reporter: Reporter,
    dtype: torch.dtype | None,
) -> Result:
    """Evaluate, save and draw what the training left."""
    state = outcome.state
    card = Card(
        model=options.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape,
        mean=dataset.mean, std=dataset.std, dataset=dataset.name, class_names=dataset.class_names,
        constraint=options.constraint, epsilon=options.epsilon,
        command=" ".join(["python cli.py", *options.argv]), seed=options.seed,
        notes=f"{outcome.status} after {int(state.step)} updates, {seconds:.0f} s of training",
    )  # fmt: skip
    common.save_checkpoint(run, state.params, state.buffers, card)
    if outcome.status == "interrupted":
        reporter.warn(
            f"interrupted: {run.file(common.CHECKPOINT_FILE)} holds the parameters as they are. "
            "Continue with"
        )
        reporter.say(f"python cli.py cure-train --resume {run.path}")
        return Result(run, outcome.status, {})
    n = options.evaluate_examples
    x, y = dataset.x_test[:n], dataset.y_test[:n]
    predict = common.evaluating(model, state.buffers, dtype)
    metrics = common.measure(
        predict, state.params, x, y, reporter, ball=ball, steps=options.evaluate_steps,
        seed=options.seed, title=f"PGD-{options.evaluate_steps}, test",
    )  # fmt: skip
    pgd_name = f"pgd{options.evaluate_steps}"
    named = {"clean": metrics["clean"], pgd_name: metrics["robust"], "seconds": seconds}
    common.save_checkpoint(run, state.params, state.buffers, replace(card, metrics=named))
    _draw(options, predict, state, dataset, ball, run)
    reporter.table(
        f"cure-train: {options.model} on {dataset.name}, {len(y)} test images, "
        f"{options.constraint} ε = {options.epsilon:.4g}",
        ("clean", f"PGD-{options.evaluate_steps}", "training"),
        [(f"{metrics['clean']:.1%}", f"{metrics['robust']:.1%}", f"{seconds:.0f} s")],
    )
    reporter.say(f"checkpoint  {run.file(common.CHECKPOINT_FILE)}")
    reporter.say(f"pictures    {run.file('curves.png')}  {run.file('adversarial.png')}")
    return Result(run, outcome.status, named)


def _draw(
    options: CureOptions,
    predict: Any,
    state: State,
    dataset: data.Dataset,
    ball: Ball,
    run: RunFolder,
) -> None:
    """Curves, and a picture of what the attack does to the first test image of each class."""
    plots.curves(
        run.metrics(), run.file("curves.png"), title=f"cure-train {run.path.name}",
        panels={
            "loss": ["loss"], "curvature": ["curvature"],
            "accuracy": ["train_clean", "test_clean", "train_robust", "test_robust"],
        },
    )  # fmt: skip
    x, y = first_of_each_class(dataset)
    attack = pgd(
        cross_entropy(predict), ball, step_size=options.epsilon / 4, steps=options.evaluate_steps
    )
    with torch.no_grad():
        fooled = attack(state.params, x, y)
        names = dataset.class_names
        before = [names[i] for i in predict(state.params, x).argmax(-1).tolist()]
        after = [names[i] for i in predict(state.params, fooled).argmax(-1).tolist()]
    change, factor = plots.change_row(x, fooled)
    plots.image_grid(
        [("test image", x), (f"PGD-{options.evaluate_steps}", fooled),
         (f"change ×{factor:g}", change)],
        run.file("adversarial.png"),
        column_labels=[f"{names[c]}\n{b} → {a}" for c, b, a in
                       zip(y.tolist(), before, after, strict=True)],
        title=f"{options.model} under {options.constraint} ε = {options.epsilon:.3g}",
        caption="Under each true class: predicted on the test image → predicted after the attack. "
        "Gray in the last row is no change.",
    )  # fmt: skip


def first_of_each_class(dataset: data.Dataset) -> tuple[Tensor, Tensor]:
    """Return the first test image (float) and label of every class that the test set has."""
    classes = dataset.y_test.unique()
    index = torch.stack([(dataset.y_test == c).nonzero()[0, 0] for c in classes])
    return data.as_float(dataset.x_test[index]), dataset.y_test[index]


def resumed_options(folder: Path) -> CureOptions:
    """Rebuild the options of the run in ``folder`` from its config.json."""
    run = RunFolder.open(folder)
    if run.record.get("command") != "cure-train":
        raise FuncrobustError(
            f"{folder} is a {run.record.get('command')} run: only cure-train runs can be resumed"
        )
    stored = run.config
    return replace(CureOptions(), **_typed(stored))


def _typed(stored: dict[str, Any]) -> dict[str, Any]:
    names = CureOptions.__dataclass_fields__
    kept = {k: v for k, v in json.loads(json.dumps(stored)).items() if k in names}
    for path in ("data_dir", "out"):
        kept[path] = Path(kept[path]) if kept.get(path) not in (None, "None") else None
    kept["argv"] = tuple(kept.get("argv", ()))
    return kept
