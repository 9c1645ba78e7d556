"""``psi-train``: transfer a robust classifier by the exact derivative of the drift."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from funcrobust import checkpoints, data
from funcrobust.checkpoints import Card
from funcrobust.commands.cure_train.run import Result, first_of_each_class
from funcrobust.commands.psi_train import assemble as psi_setup
from funcrobust.commands.psi_train.assemble import make_batches, make_training
from funcrobust.commands.psi_train.compose import STARTS, make_psi, threat_radius
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.linf import linf
from funcrobust.core.losses import DISTANCES, Loss
from funcrobust.core.network.functional import Functional, Predict, functionalize
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.randomness import generator
from funcrobust.core.training.updates import State
from funcrobust.report import plots
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.report.sinks import open_sink
from funcrobust.running.classifier import (
    CHECKPOINT_FILE,
    STRONGEST,
    default_checkpoint,
    save_checkpoint,
)
from funcrobust.running.dataset import dataset_for, load_data, require_same_images
from funcrobust.running.loop import Outcome, Plan, Record, drive
from funcrobust.running.machine import maybe_compile, pick_device, pick_dtype, to_device
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.options import PsiOptions
from funcrobust.running.state import open_run, program
from funcrobust.running.threat import pick_ball

RECORDS = 10
"""How often a run measures itself at most: it is cut into so many parts."""
FAR = 20
"""Steps that the pictures walk from noise: a few change an image too little to see."""


def psi_train(options: PsiOptions, reporter: Reporter, *, resume: Path | None = None) -> Result:
    """Minimise mean ‖x − ψ(x; θ)‖² + μ·CE; report and picture before and after."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.precision, device)
    psi_setup.check(options)
    ball = pick_ball(options.constraint, options.radius)
    make_psi(options, ball, lambda _, x: x)  # bad options raise here, not minutes later
    if options.learn_starts:
        options = replace(options, start="own")
    module, card = checkpoints.load(
        options.checkpoint or default_checkpoint(STRONGEST), model=options.model
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    psi_setup.labels_for(nothing, options.label, card.num_classes, generator(0, "check"))
    options = replace(options, dataset=dataset_for(options.dataset, card))
    if options.epsilon is None:
        options = replace(options, epsilon=card.epsilon if card.constraint == "linf" else 8 / 255)
    reporter.say(_headline(options, card, device))
    dataset = load_data(options, device, reporter)
    require_same_images(card, dataset)
    model = to_device(functionalize(module), device)
    update, state = make_training(options, ball, model, dataset, dtype)
    run, state = open_run("psi-train", options, state, options.updates, resume)
    reporter.attach(run.file("console.log"))
    work = Work(options, ball, model, card, dataset, dtype, run, reporter)
    before = work.before()
    # On CUDA too: compiled, ψ is the unrolled iteration, and its memory grows with the steps.
    eager_by_default = replace(options, compile=bool(options.compile))
    batches = make_batches(options, dataset)
    plan = Plan(
        update=maybe_compile(
            update, state=state, batch=batches(0), options=eager_by_default, reporter=reporter
        ),
        batch=batches,
        steps=options.updates,
        steps_per_epoch=-(-options.updates // RECORDS),
        batch_size=options.batch_size,
        unit="part",
        enough=lambda record: record["heldout_drift"] <= (1 - options.aim) * before["drift"],
        examine=work.examine,
    )
    outcome = drive(plan, state, run, reporter, open_sink(options.log, run, "psi-train"))
    return _finish(work, outcome, before)


@dataclass(frozen=True)
class Work:
    """A run and all that it is measured by."""

    options: PsiOptions
    ball: Ball
    """ψ's."""
    model: Functional
    card: Card
    dataset: data.Dataset
    dtype: torch.dtype | None
    run: RunFolder
    reporter: Reporter

    def predict(self, state: State) -> Predict:
        """Predict in evaluation mode, at the run's precision."""
        return evaluating(self.model, state.buffers, self.dtype)

    def drift_of(self, predict: Predict) -> Loss:
        """The drift of the ψ document, from the images themselves."""
        distance = DISTANCES[self.options.distance]
        return drift(make_psi(self.options, self.ball, predict), distance=distance)

    @cached_property
    def heldout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Test images, their classes, and the labels that ψ moves them toward."""
        n = self.options.heldout_examples
        x, y = self.dataset.x_test[:n], self.dataset.y_test[:n]
        draw = generator(self.options.seed, "psi/heldout", 0, y.device)
        classes = self.dataset.num_classes
        return x, y, psi_setup.labels_for(y, self.options.label, classes, draw)

    def drift_and_clean(self, state: State) -> Record:
        """Held-out drift, and clean accuracy on the same images."""
        predict, (x, y, label) = self.predict(state), self.heldout
        params = network_of(state.params)
        return {
            "heldout_drift": evaluation.mean_of(self.drift_of(predict), params, x, label),
            "clean": float(evaluation.correct(predict, params, x, y).float().mean()),
        }

    def accuracies(self, state: State, when: str) -> dict[str, float]:
        """Clean and robust accuracy."""
        n, options = self.options.evaluate_examples, self.options
        return measure(
            self.predict(state), network_of(state.params), self.dataset.x_test[:n],
            self.dataset.y_test[:n], self.reporter, ball=linf(threat_radius(options)),
            steps=options.evaluate_steps, seed=options.seed,
            title=f"PGD-{options.evaluate_steps}, {when}",
        )  # fmt: skip

    def before(self) -> dict[str, float]:
        """Figures of the network given; measured once, and read back by a resumed run."""
        recorded = [r for r in self.run.metrics() if r["step"] == 0 and "clean_before" in r]
        if not recorded:
            measured = self.accuracies(self.initial, "before")
            first = {f"{name}_before": value for name, value in measured.items()}
            self.run.log({"epoch": 0, "step": 0, **self.drift_and_clean(self.initial), **first})
            recorded = [r for r in self.run.metrics() if r["step"] == 0]
        found = recorded[-1]
        return {
            "drift": found["heldout_drift"], "clean": found["clean_before"],
            "robust": found["robust_before"],
        }  # fmt: skip

    @property
    def initial(self) -> State:
        """The network given."""
        return State(
            self.model.params, self.model.buffers, None, torch.zeros((), dtype=torch.int64)
        )

    @cached_property
    def pictured(self) -> tuple[Tensor, Tensor, Tensor]:
        """A test image of each class, its class, and a Gaussian start of it."""
        x, y = first_of_each_class(self.dataset)
        draw = generator(self.options.seed, "psi/gaussian", 0, y.device)
        return x, y, psi_setup.gaussian_starts(self.dataset)(y, draw)

    def drawn(self, state: State) -> tuple[Tensor, Tensor]:
        """ψ of the pictured images, and a longer walk from their starts."""
        (x, y, starts), predict = self.pictured, self.predict(state)
        params, far = network_of(state.params), max(self.options.steps, FAR)
        with torch.no_grad():
            moved = make_psi(self.options, self.ball, predict)(params, x, y)
            return moved, make_psi(self.options, self.ball, predict, far)(params, starts, y)

    @cached_property
    def drawn_before(self) -> tuple[Tensor, Tensor]:
        """The same of the network given: one for all strips."""
        return self.drawn(self.initial)

    def examine(self, part: int, state: State) -> Record:
        """Measure, and leave a picture now and then."""
        every = -(-RECORDS // self.options.strips) if self.options.strips else 0
        if every and (part + 1) % every == 0:
            folder = self.run.path / "strips"
            folder.mkdir(exist_ok=True)
            before_after(self, state, folder / f"step-{int(state.step):05d}.png")
        return self.drift_and_clean(state)


def network_of(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out learned start images."""
    return {name: p for name, p in params.items() if name != STARTS}


def _headline(options: PsiOptions, card: Card, device: torch.device) -> str:
    way = "toward" if options.targeted else "away from"
    begin = {"own": "", "made": " from images it made", "learned": ""}.get(
        options.start, f" from images mixed with {options.start}"
    )
    return (
        f"ψ of {card.model} ({card.dataset}) on {device}: {options.steps} {options.constraint} "
        f"steps of {options.step_size:g} {way} the {options.label} label{begin}, "
        f"{options.derivative}; {options.updates} updates of batch {options.batch_size}, "
        f"{options.opt} lr {options.lr_max:g}, anchor μ = {options.anchor:g}"
    )


def _finish(work: Work, outcome: Outcome, before: dict[str, float]) -> Result:
    """Measure again, save, draw, and show both beside each other."""
    options, run, reporter, state = work.options, work.run, work.reporter, outcome.state
    begun = options.checkpoint or default_checkpoint(STRONGEST)
    new = replace(
        work.card, command=" ".join(["python cli.py", *options.argv]), seed=options.seed,
        notes=f"psi-train from {begun}: {outcome.status} after {int(state.step)} updates",
        metrics={},
    )  # fmt: skip
    network = network_of(state.params)
    save_checkpoint(run, network, state.buffers, new)
    path = run.file(CHECKPOINT_FILE)
    if outcome.status == "interrupted":
        reporter.warn(f"interrupted: {path} holds the parameters as they are. Continue with")
        reporter.say(f"{program()} psi-train --resume {run.path}")
        return Result(run, outcome.status, {})
    after = {"drift": work.drift_and_clean(state)["heldout_drift"]}
    after |= work.accuracies(state, "after")
    save_checkpoint(run, network, state.buffers, replace(new, metrics=after))
    _draw(work, state)
    reporter.table(
        f"psi-train: {len(work.heldout[0])} held-out images for the drift, "
        f"{len(work.dataset.y_test[: options.evaluate_examples])} for the accuracies, "
        f"linf ε = {threat_radius(options):.4g}",
        ("", "ψ-drift", "clean", f"PGD-{options.evaluate_steps}"),
        [
            (when, f"{m['drift']:.3f}", f"{m['clean']:.1%}", f"{m['robust']:.1%}")
            for when, m in (("before", before), ("after", after))
        ],
    )
    change = after["drift"] / before["drift"] - 1 if before["drift"] else 0.0
    reporter.say(f"held-out drift {change:+.1%}; checkpoint {path}")
    reporter.say(f"pictures  {run.file('before_after.png')}  {run.file('curves.png')}")
    metrics = {f"{k}_before": v for k, v in before.items()} | after
    return Result(run, outcome.status, metrics)


def _draw(work: Work, state: State) -> None:
    """Curves, ψ before and after, and the start images if they were learned."""
    run, options = work.run, work.options
    plots.curves(
        run.metrics(), run.file("curves.png"), x="step", title=f"psi-train {run.path.name}",
        panels={"drift": ["drift", "heldout_drift"], "anchor": ["anchor"],
                "accuracy": ["clean"]},
    )  # fmt: skip
    before_after(work, state, run.file("before_after.png"))
    if STARTS in state.params:
        learned = (options.starts_rate * state.params[STARTS][:10]).clamp(0, 1)
        begun = data.as_float(work.dataset.x_train[: len(learned)])
        plots.image_grid(
            [("training image", begun), ("learned start", learned)], run.file("starts.png"),
            title="Start images learned along with the network",
        )  # fmt: skip


def before_after(work: Work, state: State, path: Path) -> None:
    """ψ before and after training, from real images and from class-conditional Gaussians."""
    options, dataset = work.options, work.dataset
    x, y, starts = work.pictured
    steps = max(options.steps, FAR)
    rows: list[tuple[str, Tensor]] = [("test image", x)]
    walks: list[tuple[str, Tensor]] = []
    factor = None
    for when, (moved, walked) in (("before", work.drawn_before), ("after", work.drawn(state))):
        change, factor = plots.change_row(x, moved, factor)
        rows += [(f"ψ {when}", moved), (f"(ψ − x) {when} ×{factor:g}", change)]
        walks.append((f"{steps} steps, {when}", walked))
    plots.image_grid(
        [*rows, ("Gaussian start", starts), *walks], path,
        column_labels=[dataset.class_names[c] for c in y.tolist()],
        title=f"ψ before and after {int(state.step)} updates",
        caption=f"ψ: {options.steps} {options.constraint} steps of {options.step_size:g} on test "
        f"images (gray: no change); below, {steps} steps from class-conditional Gaussian noise "
        "toward each class.",
    )  # fmt: skip
