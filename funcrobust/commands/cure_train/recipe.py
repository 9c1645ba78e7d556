"""``cure-train`` from start to finish: what is driven, measured, saved and drawn."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from funcrobust import data
from funcrobust.checkpoints import Card
from funcrobust.commands.cure_train.assemble import (
    Training,
    assemble,
    calibration,
    evaluated,
    require_fitting,
)
from funcrobust.commands.cure_train.beginning import checkpointed
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.commands.cure_train.pictures import draw
from funcrobust.commands.cure_train.presets import DOCUMENTED
from funcrobust.core.evaluation.adversary import AT_ONCE
from funcrobust.core.network.functional import Buffers, Params
from funcrobust.core.training.updates import State
from funcrobust.models.registry import is_factory
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.report.sinks import open_sink, require_sink
from funcrobust.running.budget import SAMPLE, Budget, measure_seconds, update_seconds
from funcrobust.running.classifier import Classifier, save_checkpoint
from funcrobust.running.collapse import Figures
from funcrobust.running.config import as_command, trusting
from funcrobust.running.dataset import (
    Chosen,
    chosen_test_images,
    chosen_training_images,
    load_data,
    part_of,
    which_test_images,
)
from funcrobust.running.holding import Held, Result, conclude, hold, say_what_is_next
from funcrobust.running.inputs import inputs
from funcrobust.running.loop import Outcome, Plan, drive
from funcrobust.running.machine import (
    launched,
    pick_device,
    pick_precision,
    rehearsed,
    require_capture,
    warn_if_emulated,
)
from funcrobust.running.measuring import evaluating, measure, withstood
from funcrobust.running.optimiser import unusual_rate
from funcrobust.running.option import options_of, written_number
from funcrobust.running.processes import processes
from funcrobust.running.restoring import fitting_step
from funcrobust.running.run_report import RunReport
from funcrobust.running.state import Kept
from funcrobust.running.threat import pick_ball, written_threat

WATCHED_STEPS = 10
"""Of the attacks after every epoch."""
WATCHED = f"PGD-{WATCHED_STEPS} and sharp PGD-{WATCHED_STEPS}"


def cure_train(options: CureTrain, reporter: Reporter) -> Result:
    """Train a robust classifier; leave it, its card, curves and pictures in a run folder."""
    with hold(options) as held:
        return _train(held, reporter)


def _train(held: Held[CureTrain], reporter: Reporter) -> Result:
    options = held.options
    budget = Budget(options.minutes) if options.minutes else None
    device = pick_device(options.device)
    require_capture(options.capture, device)
    log = options.log if processes().first else "none"
    require_sink(log)
    warn_if_emulated(options.precision, device, reporter)
    if unusual := unusual_rate(options):
        reporter.warn(unusual)
    options = replace(options, precision=pick_precision(options.precision, device))
    pick_ball(options.constraint, options.epsilon)  # refused now, not after the data are loaded
    found = inputs(options)  # with what is loaded: a run's file may hold another network later
    held.require(options, found)
    begun = checkpointed(options, reporter)
    if budget is None:
        reporter.say(_headline(options, device))
    if more := unsaid(options):
        reporter.warn(more)
    dataset = load_data(options.dataset, options, reporter)
    dataset = part_of(
        dataset, options.train_examples, options.test_examples, options.seed, reporter
    )
    require_fitting(options, dataset)
    dataset = dataset.to(device)
    training = assemble(options, dataset, reporter.progress_callback(), begun)
    if budget is not None:
        reporter.say("timing some updates ...")
        options = _within(budget, options, training, dataset, reporter)
        training = assemble(options, dataset, reporter.progress_callback(), begun)
        reporter.say(_headline(options, device))
    run, position = held.open(options, training.state, reporter, found, training.steps)
    reporter.attach(run.file("console.log"))
    work = Work(options, training, dataset, run, reporter, begun)
    reporter.say(work.watching())
    launching = partial(launched, options=options, compiles=True, reporter=reporter)
    report = RunReport(run, options, training.steps, reporter)
    kept = Kept(work.card(""))
    plan = Plan(
        update=training.update(launching),
        batch=training.batches,
        steps=training.steps,
        steps_per_epoch=training.batches.steps_per_epoch,
        batch_size=options.batch_size,
        examine=work.examine,
        watched=0 if options.attack == "none" else len(work.watched["train"].y),
        save_every=options.save_every,
        kept=kept,
        report=report.renew,
    )
    outcome = drive(plan, position, run, reporter, open_sink(log, run, "cure-train"))
    left = partial(work.kept, outcome.state)
    return conclude(
        run, outcome.status, outcome.position, reporter, kept,
        save=lambda: work.save(outcome, *left()), finish=lambda: work.finish(outcome, *left()),
        report=report,
    )  # fmt: skip


def _within(
    budget: Budget, options: CureTrain, training: Training, dataset: data.Dataset,
    reporter: Reporter,
) -> CureTrain:  # fmt: skip
    """Return the options of a training that is done when the budget is spent."""
    began = time.perf_counter()
    launching = partial(launched, options=rehearsed(options), compiles=True, reporter=reporter)
    trial = training.update(launching)
    recording = time.perf_counter() - began  # once more, for the run itself
    update = update_seconds(trial, training.batches, training.state, budget, options.cycle)
    model = training.model
    # A GPU takes as long for a few images as for many, and longer the first time.
    on_gpu = dataset.y_test.is_cuda
    sample = min(at_once(options), options.robust_examples) if on_gpu else SAMPLE
    images = chosen_test_images(dataset, sample, options.seed)
    predict = evaluating(model, model.buffers, training.dtype)
    if on_gpu:
        measure_seconds(predict, model.params, images, training.ball)
    image = measure_seconds(predict, model.params, images, training.ball)
    # Attacks: half of an update.
    statistics = calibration(options.batch_size) * update / 2 if options.ema else 0.0
    look = statistics + 2 * options.robust_examples * WATCHED_STEPS * image
    epoch = training.batches.steps_per_epoch * update + look / options.watch_every
    final = options.evaluate_examples * options.evaluate_steps * image
    once = recording + final + (look if options.watch_every > 1 else statistics)  # the last epoch's
    epochs = budget.count(
        epoch, once, f"one epoch of {options.model}",
        "fewer --train-examples, or a smaller --model",
    )  # fmt: skip
    # Unasked nothing is compiled on a GPU: it takes minutes, and nobody knows beforehand how many.
    # It is written down, for a run that is resumed has no --minutes to know it from.
    compile = False if on_gpu and options.compile is None else options.compile
    return replace(options, epochs=epochs, minutes=None, compile=compile)


def at_once(options: CureTrain) -> int:
    """Return how many images are measured at a time: what an update has room for, at least."""
    return max(AT_ONCE, options.batch_size)


def _headline(options: CureTrain, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    own = is_factory(options.model)
    begun = f" from {options.checkpoint}" if options.checkpoint else ""
    return (
        f"preset {options.preset} on {name}: {options.model}{begun}, {options.epochs} epochs of "
        f"batch {options.batch_size}, {options.opt} {options.lr_schedule} lr {options.lr_max:g}, "
        f"{options.attack} ε = {written_number(options.epsilon)}, {_regularisation(options)}, "
        f"{options.precision}"
        + (", normalised by the data's mean and deviation unless normalized = True" * own)
    )


def unsaid(options: CureTrain) -> str:
    """Say what else belongs to the document whose printed command the options are; "" if none's.

    The command leaves out what its code has as defaults, and ours are others. To take them for
    implied would be to guess; to say nothing, to let one experiment pass for another.
    """
    for preset, said in DOCUMENTED.items():
        whole = CureTrain.filled({"preset": preset})
        if options.preset == preset or any(
            getattr(options, name) != getattr(whole, name) for name in said
        ):
            continue
        others = [
            " ".join(option.written(getattr(whole, name)))
            for name, option in options_of(CureTrain).items()
            if name not in (*said, "preset", "precision", "checkpoint") and not option.where
            if name != "model" or options.checkpoint is None
            if getattr(options, name) != getattr(whole, name)
        ]
        return f"so far the document's command; --preset {preset} adds {' '.join(others)}"
    return ""


def _regularisation(options: CureTrain) -> str:
    """Say in words what is added to adversarial training."""
    said = []
    if options.curvature:
        said.append(f"CURE {options.delta} h = {options.h:g} λ = {options.lam:g}")
    weights = {
        "TRADES β": options.trades or 0.0, "clean κ": options.kappa, "HAT γ": options.hat,
        "restoration": options.restore, **options.regularisers, "EMA": options.ema,
    }  # fmt: skip
    said += [f"{name} = {weight:g}" for name, weight in weights.items() if weight > 0]
    return ", ".join(said) or "no regularisation"


@dataclass(frozen=True)
class Work:
    """A run, and all that it is measured by."""

    options: CureTrain
    training: Training
    dataset: data.Dataset
    run: RunFolder
    reporter: Reporter
    begun: Classifier | None = None
    _kept: list[tuple[State, tuple[Params, Buffers]]] = field(default_factory=list, init=False)

    @cached_property
    def watched(self) -> dict[str, Chosen]:
        """The images of each split that every epoch is measured on, at random."""
        n, seed = self.options.robust_examples, self.options.seed
        return {
            "train": chosen_training_images(self.dataset, n, seed),
            "test": chosen_test_images(self.dataset, n, seed),
        }

    def watching(self) -> str:
        """Say when the epochs are looked at, and how well what is seen is known."""
        train, test = (len(images.y) for images in self.watched.values())
        every = self.options.watch_every
        when = "every epoch" if every == 1 else f"every {every} epochs and the last one"
        said = f"after {when} {WATCHED}, on {train} training and {test} test images"
        if self.options.epochs <= every:
            said += ", once, which shows no collapse"
        if test == len(self.dataset.y_test):
            return said
        return f"{said}: of all, to ±{100 * 1.96 * math.sqrt(0.25 / test):.0f} points"

    def examine(self, epoch: int, state: State) -> Figures:
        """Measure, on training and on test images, what would be kept of the state, where due."""
        training, options = self.training, self.options
        if (epoch + 1) % options.watch_every and epoch + 1 != options.epochs:
            return {"lr": float(training.rate(state.step))}
        params, buffers = self.kept(state)
        predict = evaluating(training.model, buffers, training.dtype)
        record: Figures = {"lr": float(training.rate(state.step))}
        for split, images in self.watched.items():
            found = measure(
                predict, params, images, self.reporter, ball=training.ball, steps=WATCHED_STEPS,
                seed=self.options.seed, title=f"{WATCHED}, {split}", batch_size=at_once(options),
            )  # fmt: skip
            record |= {f"{split}_{name}": value for name, value in found.items()}
        if (attack := training.batches.attack) is not None:
            record["train_attacked"] = withstood(
                predict, params, self.watched["train"], attack, seed=options.seed,
                batch_size=at_once(options),
            )  # fmt: skip
        return record

    def kept(self, state: State) -> tuple[Params, Buffers]:
        """Return what would be kept of the state; with a bar, for it takes seconds."""
        for of, found in self._kept:  # what the last epoch was measured by is what the run leaves
            if of is state:
                return found
        batches = calibration(self.options.batch_size) if state.average else 0
        with self.reporter.track("batch-norm statistics", batches, unit="batch") as bar:
            found = evaluated(self.training, state, bar.advance)
        self._kept[:] = [(state, found)]
        return found

    def notes(self, outcome: Outcome) -> str:
        """Say how it ended."""
        at = outcome.position
        begun = f"cure-train from {self.options.checkpoint}: " if self.options.checkpoint else ""
        return f"{begun}{outcome.status} after {at.step} updates, {at.seconds:.0f} s of training"

    def save(self, outcome: Outcome, params: Params, buffers: Buffers) -> None:
        """Leave a checkpoint of what the training left, without figures yet."""
        card = self.card(self.notes(outcome))
        save_checkpoint(self.run, self.training.model, params, buffers, card)

    def finish(self, outcome: Outcome, params: Params, buffers: Buffers) -> dict[str, float]:
        """Evaluate, save with the figures, and draw what the training left."""
        options, run, reporter = self.options, self.run, self.reporter
        model, seconds = self.training.model, outcome.position.seconds
        steps = options.evaluate_steps
        images = chosen_test_images(self.dataset, options.evaluate_examples, options.seed)
        which = which_test_images(len(images.y), len(self.dataset.y_test))
        # In float32, whatever the training was in.
        predict = evaluating(model, buffers, None)
        found = measure(
            predict, params, images, reporter, ball=self.training.ball, steps=steps,
            seed=options.seed, title=f"PGD-{steps} and sharp PGD-{steps}, test",
            batch_size=max(AT_ONCE, at_once(options) // 2),  # float32
        )  # fmt: skip
        figures = {
            "clean": found["clean"], f"pgd{steps}": found["robust"], "worst": found["worst"],
            "seconds": round(seconds, 3),
        }  # fmt: skip
        notes = (
            f"{self.notes(outcome)}; figures on {which}; worst: under PGD-{steps} and then sharp "
            f"PGD-{steps}"
        )
        save_checkpoint(run, model, params, buffers, replace(self.card(notes), metrics=figures))
        if not processes().first:
            return figures
        draw(options, predict, params, self.dataset, self.training.ball, run)
        reporter.table(
            f"cure-train: {options.model} on {self.dataset.name}, {which}, "
            + written_threat(options.constraint, options.epsilon),
            ("clean", f"PGD-{steps}", f"and sharp PGD-{steps}", "training"),
            [(*(f"{share:.1%}" for share in found.values()), f"{seconds:.0f} s")],
        )
        code = trusting(options)
        say_what_is_next(
            run, reporter, f"evaluate {{run}}{code}", f"psi-train --checkpoint {{run}}{code}"
        )
        return figures

    def card(self, notes: str) -> Card:
        """What travels with the weights."""
        options, dataset = self.options, self.dataset
        normalised = self.begun.card if self.begun else dataset
        return Card(
            model=options.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape,
            mean=normalised.mean, std=normalised.std, dataset=dataset.name,
            class_names=dataset.class_names, constraint=options.constraint,
            epsilon=options.epsilon, command=as_command(options), seed=options.seed, notes=notes,
            restoring_step=fitting_step(dataset.image_shape) if options.restore else None,
        )  # fmt: skip
