"""``cure-train``: fast adversarial training with curvature regularisation, start to finish."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.checkpoints import Card
from funcrobust.commands.cure_train.assemble import Training, assemble, evaluated
from funcrobust.core.balls.ball import Ball
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.projected_gradient import pgd
from funcrobust.core.training.updates import State
from funcrobust.report import plots
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.report.sinks import open_sink
from funcrobust.running.classifier import CHECKPOINT_FILE, save_checkpoint
from funcrobust.running.dataset import load_data
from funcrobust.running.loop import Outcome, Plan, Record, drive
from funcrobust.running.machine import maybe_compile, pick_device, pick_dtype
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.options import CureOptions
from funcrobust.running.state import open_run, program


@dataclass(frozen=True)
class Result:
    """What a finished recipe hands back."""

    run: RunFolder
    status: str
    metrics: dict[str, float]


def cure_train(options: CureOptions, reporter: Reporter, *, resume: Path | None = None) -> Result:
    """Train a robust classifier; leave it, its card, curves and pictures in a run folder."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.precision, device)
    reporter.say(_headline(options, device))
    dataset = load_data(options, device, reporter)
    training = assemble(options, dataset)
    run, state = open_run("cure-train", options, training.state, training.steps, resume)
    reporter.attach(run.file("console.log"))

    def examine(_: int, state: State) -> Record:
        params, buffers = evaluated(training, state)
        predict = evaluating(training.model, buffers, dtype)
        record: Record = {"lr": float(training.rate(state.step))}
        for split, x, y in (
            ("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test),
        ):  # fmt: skip
            n = options.robust_examples
            found = measure(
                predict, params, x[:n], y[:n], reporter, ball=training.ball, steps=10,
                seed=options.seed, title=f"PGD-10, {split}",
            )  # fmt: skip
            record |= {f"{split}_{name}": value for name, value in found.items()}
        return record

    prepare = partial(maybe_compile, options=options, reporter=reporter)
    plan = Plan(
        update=training.update(prepare),
        batch=training.batches,
        steps=training.steps,
        steps_per_epoch=training.batches.steps_per_epoch,
        batch_size=options.batch_size,
        examine=examine,
        watch_collapse=options.attack.lower() != "none",
    )
    began = time.perf_counter()
    outcome = drive(plan, state, run, reporter, open_sink(options.log, run, "cure-train"))
    seconds = time.perf_counter() - began
    return _finish(options, training, dataset, run, outcome, seconds, reporter)


def _headline(options: CureOptions, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return (
        f"preset {options.preset} on {name}: {options.model}, {options.epochs} epochs of batch "
        f"{options.batch_size}, {options.opt} {options.lr_schedule} lr {options.lr_max:g}, "
        f"{options.attack} ε = {options.epsilon:.4g}, {_regularisation(options)}, "
        f"{options.precision}"
    )


def _regularisation(options: CureOptions) -> str:
    """Say in words what is added to adversarial training."""
    said = []
    if options.lam > 0 and options.delta.lower() != "none":
        said.append(f"CURE {options.delta} h = {options.h:g} λ = {options.lam:g}")
    weights = {
        "TRADES β": options.trades or 0.0, "clean κ": options.kappa, "HAT γ": options.hat,
        **options.regularisers, "EMA": options.ema,
    }  # fmt: skip
    said += [f"{name} = {weight:g}" for name, weight in weights.items() if weight > 0]
    return ", ".join(said) or "no regularisation"


def _finish(
    options: CureOptions,
    training: Training,
    dataset: data.Dataset,
    run: RunFolder,
    outcome: Outcome,
    seconds: float,
    reporter: Reporter,
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
    params, buffers = evaluated(training, state)
    save_checkpoint(run, params, buffers, card)
    if outcome.status == "interrupted":
        reporter.warn(
            f"interrupted: {run.file(CHECKPOINT_FILE)} holds the parameters as they are. "
            "Continue with"
        )
        reporter.say(f"{program()} cure-train --resume {run.path}")
        return Result(run, outcome.status, {})
    n = options.evaluate_examples
    x, y = dataset.x_test[:n], dataset.y_test[:n]
    predict = evaluating(training.model, buffers, None)  # float32, whatever the training was
    metrics = measure(
        predict, params, x, y, reporter, ball=training.ball, steps=options.evaluate_steps,
        seed=options.seed, title=f"PGD-{options.evaluate_steps}, test",
    )  # fmt: skip
    pgd_name = f"pgd{options.evaluate_steps}"
    named = {"clean": metrics["clean"], pgd_name: metrics["robust"], "seconds": seconds}
    save_checkpoint(run, params, buffers, replace(card, metrics=named))
    _draw(options, predict, params, dataset, training.ball, run)
    reporter.table(
        f"cure-train: {options.model} on {dataset.name}, {len(y)} test images, "
        f"{options.constraint} ε = {options.epsilon:.4g}",
        ("clean", f"PGD-{options.evaluate_steps}", "training"),
        [(f"{metrics['clean']:.1%}", f"{metrics['robust']:.1%}", f"{seconds:.0f} s")],
    )
    reporter.say(f"checkpoint  {run.file(CHECKPOINT_FILE)}")
    reporter.say(f"pictures    {run.file('curves.png')}  {run.file('adversarial.png')}")
    return Result(run, outcome.status, named)


def _draw(
    options: CureOptions,
    predict: Predict,
    params: Params,
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
        fooled = attack(params, x, y)
        names = dataset.class_names
        before = [names[i] for i in predict(params, x).argmax(-1).tolist()]
        after = [names[i] for i in predict(params, fooled).argmax(-1).tolist()]
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
