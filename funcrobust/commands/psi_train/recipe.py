"""``psi-train`` from start to finish: transfer by ψ's exact derivative."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from typing import Any

import torch

from funcrobust import data
from funcrobust.checkpoints import Card, renewed
from funcrobust.commands.psi_train.assemble import labels_for, make_batches, make_training
from funcrobust.commands.psi_train.compose import (
    STARTS,
    make_psi,
    psi_ball,
    threat_radius,
)
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.commands.psi_train.pictures import before_after, draw
from funcrobust.commands.psi_train.work import Work, network_of
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.linf import linf
from funcrobust.core.network.functional import Functional
from funcrobust.core.randomness import generator
from funcrobust.core.training.updates import State, Update, averaged
from funcrobust.report.console import Reporter
from funcrobust.report.sinks import open_sink, require_sink
from funcrobust.running.budget import SAMPLE, Budget, measure_seconds, update_seconds
from funcrobust.running.classifier import load_classifier, save_checkpoint, usual_checkpoint
from funcrobust.running.collapse import Figures
from funcrobust.running.config import as_command, trusting
from funcrobust.running.dataset import chosen_test_images, load_known, part_of, which_test_images
from funcrobust.running.groups import of_another_norm
from funcrobust.running.holding import Held, Result, conclude, hold, say_what_is_next
from funcrobust.running.inputs import inputs
from funcrobust.running.loop import Outcome, Plan, drive
from funcrobust.running.machine import (
    launched,
    pick_device,
    pick_dtype,
    pick_precision,
    rehearsed,
    require_capture,
    warn_if_emulated,
)
from funcrobust.running.measuring import evaluating
from funcrobust.running.optimiser import unusual_rate
from funcrobust.running.processes import processes
from funcrobust.running.restoring import fitting_step
from funcrobust.running.run_report import RunReport
from funcrobust.running.state import Kept
from funcrobust.running.threat import written_threat

RECORDS = 10
"""How often a run measures itself at most: it is cut into so many parts."""


def psi_train(options: PsiTrain, reporter: Reporter) -> Result:
    """Minimise w·‖x − ψ(s; θ)‖² + δ·‖z − ψ(z; θ)‖² + μ·anchor; report and picture both ends."""
    with hold(options) as held:
        return _train(held, reporter)


def _train(held: Held[PsiTrain], reporter: Reporter) -> Result:
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
    dtype = pick_dtype(options.precision, device)
    ball = psi_ball(options)
    begun = options.checkpoint or usual_checkpoint()
    found = inputs(options, checkpoint=begun)
    held.require(options, found)
    _, card, _, model = load_classifier(
        begun, device, reporter, model=options.model, images=options
    )
    options = replace(options, epsilon=_radius(options, card))
    if options.step_size is None:
        options = replace(options, step_size=fitting_step(card.image_shape))
    make_psi(options, ball, lambda _, x: x)  # bad options raise here, not minutes later
    nothing = torch.zeros(0, dtype=torch.int64)
    labels_for(nothing, options.label, card.num_classes, generator(0, "check"))
    if budget is None:
        reporter.say(_headline(options, card, device))
    dataset = load_known(options, card, reporter)
    options = replace(options, dataset=dataset.name)
    dataset = part_of(
        dataset, options.train_examples, options.test_examples, options.seed, reporter
    )
    dataset = dataset.to(device)
    if budget is not None:
        reporter.say("timing some updates ...")
        options = _within(budget, options, ball, model, dataset, dtype, reporter)
        reporter.say(_headline(options, card, device))
    update, state = make_training(options, ball, model, dataset, dtype)
    run, position = held.open(options, state, reporter, found, options.updates)
    reporter.attach(run.file("console.log"))
    work = Work(options, begun, ball, model, card, dataset, dtype, run, reporter)
    before = work.before()
    batches = make_batches(options, dataset)
    batch = processes().shard.rows(batches(0))
    update = _launched(update, state, batch, options, reporter)
    report = RunReport(run, options, options.updates, reporter)
    kept = Kept(_card(work, ""), left_out=(STARTS,))
    plan = Plan(
        update=update,
        batch=batches,
        steps=options.updates,
        steps_per_epoch=part_length(options.updates),
        batch_size=options.batch_size,
        unit="part",
        enough=lambda record: record["heldout_drift"] <= (1 - options.aim) * before["drift"],
        examine=lambda part, state: _examine(work, part, state),
        save_every=options.save_every,
        kept=kept,
        report=report.renew,
    )
    outcome = drive(plan, position, run, reporter, open_sink(log, run, "psi-train"))
    card = _card(work, f"{outcome.status} after {outcome.position.step} updates")
    return conclude(
        run, outcome.status, outcome.position, reporter, kept,
        save=lambda: _save(work, outcome, card),
        finish=lambda: _finish(work, outcome, before, card),
        report=report,
    )  # fmt: skip


def _radius(options: PsiTrain, card: Card) -> float:
    """Return the radius in L∞ that was asked for, or else the card's, if that is one."""
    if options.epsilon is not None:
        return options.epsilon
    if card.constraint != "linf":
        raise of_another_norm("the checkpoint's ", card.epsilon, card.constraint, "linf")
    return card.epsilon


def _launched(
    update: Update, state: State, batch: Any, options: PsiTrain, reporter: Reporter
) -> Update:
    """Compile nothing unasked: compiled, ψ is unrolled, and its memory grows with the steps."""
    if options.solves and not options.compile:
        options = replace(options, capture=False)
    return launched(
        update, state=state, batch=batch, options=options, compiles=False, reporter=reporter
    )


def _within(
    budget: Budget, options: PsiTrain, ball: Ball, model: Functional, dataset: data.Dataset,
    dtype: torch.dtype | None, reporter: Reporter,
) -> PsiTrain:  # fmt: skip
    """Return the options of a training that is done when the budget is spent."""
    update, state = make_training(options, ball, model, dataset, dtype)
    batches = make_batches(options, dataset)
    began = time.perf_counter()
    update = _launched(update, state, batches(0), rehearsed(options), reporter)
    recording = time.perf_counter() - began  # once more, for the run itself
    each = update_seconds(update, batches, state, budget)
    images = chosen_test_images(dataset, SAMPLE, options.seed)
    predict = evaluating(model, model.buffers, dtype)
    image = measure_seconds(predict, model.params, images, linf(threat_radius(options)))
    # Before and after; and what the records measure costs ψ's own steps, about an update's.
    measured = 2 * options.evaluate_examples * options.evaluate_steps * image
    records = RECORDS * options.heldout_examples / options.batch_size * each
    updates = budget.count(
        each, recording + measured + records, "an update", "fewer --evaluate-examples"
    )
    return replace(options, updates=updates, minutes=None)


def _headline(options: PsiTrain, card: Card, device: torch.device) -> str:
    way = "toward" if options.targeted else "away from"
    begin = {"own": "", "made": " from images it made", "learned": ""}.get(
        options.begins, f" from images mixed with {options.start}"
    )
    label = f"the {options.label} label{begin}" if options.drifts else "the image's own label"
    terms = {
        "restoration": options.restore, "drift": options.drift_weight, "entropy": options.entropy,
        "anchor": options.anchor,
    }  # fmt: skip
    said = ", ".join(f"{name} {weight:g}" for name, weight in terms.items() if weight)
    assert options.step_size is not None
    return (
        f"ψ of {card.model} ({card.dataset}) on {device}: {options.steps} {options.constraint} "
        f"steps of {options.step_size:.3g} {way} {label}, {options.derivative}; {said}; "
        f"{options.updates} updates of batch {options.batch_size}, {options.opt} lr "
        f"{options.lr_max:g}"
    )


def _examine(work: Work, part: int, state: State) -> Figures:
    """Measure, and leave a picture now and then."""
    if pictured(part, parts_of(work.options.updates), work.options.strips):
        picture = work.run.file(f"strips/step-{int(state.step):05d}.png")
        before_after(work, state, picture)
    return work.drift_and_clean(state)


def part_length(updates: int) -> int:
    """Return how many updates there are between two records."""
    return -(-updates // RECORDS)


def parts_of(updates: int) -> int:
    """Return how many parts a run is cut into: a short one into fewer than `RECORDS`."""
    return -(-updates // part_length(updates))


def pictured(part: int, parts: int, strips: int) -> bool:
    """Tell whether a part, from 0 on, ends with a picture: ``strips`` do, as evenly as can be.

    All do where there are fewer parts; the last does whenever one does.
    """
    strips = min(strips, parts)
    return (part + 1) * strips // parts > part * strips // parts


def _card(work: Work, notes: str) -> Card:
    """What travels with the weights."""
    options = work.options
    card, dataset = work.card, work.dataset
    if card.dataset == "unknown":  # somebody else's file, which does not say: it was this
        card = replace(
            card, dataset=dataset.name, image_shape=dataset.image_shape,
            class_names=dataset.class_names,
        )  # fmt: skip
    return replace(
        renewed(card), command=as_command(options), seed=options.seed,
        constraint="linf", epsilon=threat_radius(options),
        notes=f"psi-train from {work.begun}: {notes}", metrics={}, sha256="", fingerprint=(),
        restoring_step=options.step_size if options.restores else None,
    )  # fmt: skip


def _save(work: Work, outcome: Outcome, card: Card) -> None:
    """Leave a checkpoint of what the training left."""
    params, buffers = averaged(outcome.state)
    save_checkpoint(work.run, work.model, network_of(params), buffers, card)


def _finish(work: Work, outcome: Outcome, before: dict[str, float], new: Card) -> dict[str, float]:
    """Measure again, save with the figures, draw, and show both beside each other."""
    options, run, reporter, state = work.options, work.run, work.reporter, outcome.state
    after = work.figures(state, "after")
    which = which_test_images(len(work.evaluated.y), len(work.dataset.y_test))
    steps = options.evaluate_steps
    new = replace(
        new,
        notes=f"{new.notes}; drift on {len(work.heldout[0])} of the test images, accuracies on "
        f"{which}; robust: under PGD-{steps}; worst: and then sharp PGD-{steps}",
    )
    _save(work, outcome, replace(new, metrics=after))
    if not processes().first:
        return after
    draw(work, state)
    restores = ["restored"] if options.restore else []
    reporter.table(
        f"psi-train: {len(work.heldout[0])} held-out images for the drift, "
        f"{which}, for the accuracies, {written_threat('linf', threat_radius(options))}",
        ("", "ψ-drift", *restores, "clean", f"PGD-{steps}", f"and sharp PGD-{steps}"),
        [
            (
                when, f"{m['drift']:.3f}", *(f"{m[name]:.2f} dB" for name in restores),
                *(f"{m[name]:.1%}" for name in ("clean", "robust", "worst")),
            )
            for when, m in (("before", before), ("after", after))
        ],
    )  # fmt: skip
    change = after["drift"] / before["drift"] - 1 if before["drift"] else 0.0
    reporter.say(f"held-out drift {change:+.1%}")
    code = both = trusting(options)
    if options.model:  # what it began from may be a file that says nothing of itself
        names = ("model", "dataset")
        both = "".join(f" --{n} {shlex.quote(str(getattr(options, n)))}" for n in names)
    begun = shlex.quote(work.begun)
    say_what_is_next(run, reporter, f"evaluate {{run}}{code}", f"generate {begun} {{run}}{both}")
    return {f"{k}_before": v for k, v in before.items()} | after
