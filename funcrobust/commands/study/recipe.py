"""``study``: does ψ-training make better images? Each claim of docs/psi-study.md, measured again.

Every variant transfers the same shipped robust classifier by `psi_train` with other options. An
independent classifier judges what each draws, after every number of steps of `MARKS`, from the same
starts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from funcrobust import checkpoints, data, judging
from funcrobust.checkpoints import Card
from funcrobust.commands.psi_train.options import DRIFT, PsiTrain
from funcrobust.commands.psi_train.recipe import psi_train
from funcrobust.commands.study.options import Study
from funcrobust.core import evaluation
from funcrobust.core.balls.l2 import l2
from funcrobust.core.balls.linf import linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.perturbations.projected_gradient import gradient_step, psi
from funcrobust.core.randomness import generator, key
from funcrobust.core.starts import class_conditional_gaussian
from funcrobust.files import atomic_write
from funcrobust.report import plots
from funcrobust.report.console import Reporter
from funcrobust.report.runs import CONFIG, RunFolder
from funcrobust.running.classifier import load_classifier, pick_judge
from funcrobust.running.config import from_config
from funcrobust.running.dataset import load_known
from funcrobust.running.machine import pick_device, pick_dtype, pick_precision
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.options import options_of
from funcrobust.running.state import STATE_FILE

MARKS = (1, 2, 3, 5, 8, 12, 16, 20)
"""Numbers of generation steps that are scored."""
STEP, RADIUS = 0.5, 30.0
STARTS = ("gaussian", "noise")

_DRIFT: dict[str, Any] = {"objective": "drift"}
_OWN: dict[str, Any] = _DRIFT | {"start": "own", "aim": 1.0}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "before": None,
    "published": None,
    "drift alone": _OWN | {"anchor": 0.0},
    "anchor alone": _DRIFT | {"drift_weight": 0.0, "anchor_loss": "both", "anchor": 6.0},
    "both 2": _OWN | {"anchor_loss": "both", "anchor": 2.0},
    "both 6": _OWN | {"anchor_loss": "both", "anchor": 6.0},
    "both 20": _OWN | {"anchor_loss": "both", "anchor": 20.0},
    "keep 40": _OWN,
    "made, both 6": _DRIFT | {"anchor_loss": "both", "anchor": 6.0},
    "drift": _DRIFT,
    "default": {},
}
"""Options that differ from psi-train's; "before" is no transfer, "published" the document's code:
its loss has no gradient, so that the statistics of batch norm alone move."""


@dataclass(frozen=True)
class Bench:
    """What every variant is measured with."""

    options: Study
    dataset: data.Dataset
    judge: nn.Module
    real: judging.Seen
    wanted: Tensor
    starts: dict[str, Tensor]
    dtype: torch.dtype | None
    reporter: Reporter


def study(options: Study, reporter: Reporter) -> dict[str, Any]:
    """Transfer, score and compare; leave study.json and two plots in ``options.out``."""
    device = pick_device(options.device)
    options = replace(options, precision=pick_precision(options.precision, device))
    names = options.variants or tuple(VARIANTS)
    base, card, _, network = load_classifier(options.checkpoint, device)
    found = {name: _find(name) for name in names if name not in VARIANTS}
    dataset = load_known(options, card, reporter).to(device)
    bench = make_bench(options, base, card, dataset, reporter)
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(("before", *names)):
        reporter.say(f"{name}:")
        if name in found:
            rows[name] = score(load_classifier(str(found[name]), device).model, bench)
        elif name == "before":
            rows[name] = score(network, bench)
        elif name == "published":
            rows[name] = score(published(network, dataset, options), bench)
        else:
            rows[name] = score(transferred(name, base, dataset.name, options, reporter), bench)
        save(rows, options, base, reporter)
    table(rows, reporter)
    return rows


def _find(name: str) -> Path:
    """Return the checkpoint called so, or say what there is."""
    try:
        return checkpoints.resolve(name)
    except FuncrobustError as error:
        known = ", ".join(map(repr, VARIANTS))
        raise FuncrobustError(f"{name!r} is no variant ({known}), and {error}") from None


def make_bench(
    options: Study, base: str, card: Card, dataset: data.Dataset, reporter: Reporter
) -> Bench:
    """Draw the starts, and show the judge the real images."""
    device = dataset.y_test.device
    judge = pick_judge(options.judge, base, card, device)
    if judge is None:
        raise FuncrobustError(f"the shipped judge does not know {dataset.name}: use --judge")
    wanted = torch.arange(options.images, device=device) % dataset.num_classes
    draw = generator(options.seed, "study/gaussian", 0, device)
    gaussian = class_conditional_gaussian(
        data.as_float(dataset.x_train), dataset.y_train, wanted, draw
    )
    draw = generator(options.seed, "study/noise", 0, device)
    noise = torch.rand(gaussian.shape, generator=draw, device=device)
    with reporter.track("judging real images", total=len(dataset.x_test), unit="img") as bar:
        real = judging.look(judge, dataset.x_test, advance=bar.advance)
    starts = {"gaussian": gaussian, "noise": noise}
    dtype = pick_dtype(options.precision, device)
    return Bench(options, dataset, judge, real, wanted, starts, dtype, reporter)


def transferred(
    name: str, base: str, dataset: str, options: Study, reporter: Reporter
) -> Functional:
    """Run psi-train with the variant's options, or take up the run that is there."""
    folder = name.replace(", ", "-").replace(" ", "-")
    path = options.out / folder
    where: dict[str, Any] = {"device": options.device, "data_dir": options.data_dir}
    given = where | {
        "checkpoint": base, "dataset": dataset, "out": options.out, "name": folder,
        "seed": options.seed, "precision": options.precision, "evaluate_examples": 256, "strips": 0,
    }  # fmt: skip
    if options.updates is not None:
        given["updates"] = options.updates
    wanted = PsiTrain.filled(given | (VARIANTS[name] or {}))
    begun = (path / STATE_FILE).exists()
    if path.exists():
        _require_same(wanted, path)
    if not _finished(path):
        if path.exists() and not begun:  # killed before there was anything to go on from
            shutil.rmtree(path)
        resumed = PsiTrain.filled(where | {"resume": path}) if begun else wanted
        if psi_train(resumed, reporter).status == "interrupted":
            raise KeyboardInterrupt
    return load_classifier(str(path), pick_device(options.device)).model


FILLED_IN = ("epsilon", "step_size")


def _require_same(given: PsiTrain, path: Path) -> None:
    """Refuse to take one experiment's network for another's."""
    stored = from_config(PsiTrain, RunFolder.open(path).config, path / CONFIG)
    different = [
        name
        for name, option in options_of(PsiTrain).items()
        # What the checkpoint decides, unless it is given, the run has filled in.
        if name not in FILLED_IN
        and not option.where
        and getattr(given, name) != getattr(stored, name)
    ]
    if different:
        raise FuncrobustError(
            f"{path} holds a run with another {', '.join(different)}: use another --out, or delete "
            "that folder"
        )


def _finished(path: Path) -> bool:
    card = path / "checkpoint.json"
    return card.exists() and "interrupted" not in json.loads(card.read_text())["notes"]


def published(model: Functional, dataset: data.Dataset, options: Study) -> Functional:
    """Do what the document's code does: no gradient reaches θ, the statistics alone move.

    Its settings: untargeted from label 0, 10 L2 steps of 5, radius 200, batches of 50. ψ runs in
    evaluation mode, and what it made goes through the network in training mode.
    """
    updates = options.updates or DRIFT["updates"]
    buffers = model.buffers
    for step in range(updates):
        draw = generator(options.seed, "study/published", step, dataset.y_train.device)
        n = len(dataset.y_train)
        index = torch.randperm(n, generator=draw, device=dataset.y_train.device)[:50]
        x = data.as_float(dataset.x_train[index])
        loss = cross_entropy(model.with_buffers(buffers))
        walk = psi(loss, l2(200.0), step_size=5.0, steps=10)
        with torch.no_grad():
            moved = walk(model.params, x, torch.zeros_like(index))
            _, buffers = model.predict_train(
                model.params, buffers, moved, key=key(options.seed, "study", step)
            )
    return replace(model, buffers=buffers)


def score(model: Functional, bench: Bench) -> dict[str, Any]:
    """Accuracies, held-out drift, and the judge's view of what ψ draws."""
    options, dataset = bench.options, bench.dataset
    predict = evaluating(model, model.buffers, bench.dtype)
    n = options.examples
    x, y = dataset.x_test[:n], dataset.y_test[:n]
    found: dict[str, Any] = measure(
        predict, model.params, x, y, bench.reporter, ball=linf(8 / 255),
        steps=options.attack_steps, seed=options.seed, title=f"PGD-{options.attack_steps}",
    )  # fmt: skip
    five = psi(cross_entropy(predict), l2(RADIUS), step_size=STEP, steps=5, targeted=True)
    found["drift"] = evaluation.mean_of(drift(five), model.params, x[: n // 2], y[: n // 2])
    for kind in STARTS:
        found[kind] = [
            {"steps": steps, **judged(made, bench)} for steps, made in walked(model, bench, kind)
        ]
    return found


def walked(model: Functional, bench: Bench, kind: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the images after 0 steps and after each of `MARKS`."""
    predict = evaluating(model, model.buffers, bench.dtype)
    step = gradient_step(cross_entropy(predict), l2(RADIUS), step_size=STEP, targeted=True)
    x = center = bench.starts[kind].contiguous(memory_format=torch.channels_last)
    yield 0, x
    total = MARKS[-1] * len(x)
    with bench.reporter.track(f"{kind} starts", total=total, unit="img") as bar:
        for t in range(1, MARKS[-1] + 1):
            parts = zip(x.split(125), bench.wanted.split(125), center.split(125), strict=True)
            with torch.no_grad():
                x = torch.cat([step(model.params, a, y, c) for a, y, c in parts])
            bar.advance(len(x))
            if t in MARKS:
                yield t, x


def judged(made: Tensor, bench: Bench) -> dict[str, float]:
    """Fréchet distance to all test images; precision and recall against as many as were made."""
    seen = judging.look(bench.judge, made)
    n = len(made)
    few = judging.Seen(bench.real.features[:n], bench.real.labels[:n])
    precision, recall = judging.precision_recall(few, seen)
    return {
        "frechet": judging.frechet_distance(bench.real, seen), "precision": precision,
        "recall": recall, "agreement": judging.agreement(seen, bench.wanted),
    }  # fmt: skip


def save(rows: dict[str, Any], options: Study, base: str, reporter: Reporter) -> None:
    """Write the figures and the plots after every variant: a study can be cut short."""
    plain = {
        "checkpoint": base, "images": options.images, "examples": options.examples,
        "attack_steps": options.attack_steps, "step_size": STEP, "seed": options.seed,
        "threads": torch.get_num_threads(), "variants": rows,
    }  # fmt: skip
    atomic_write(options.out / "study.json", json.dumps(plain, indent=1) + "\n")
    for kind in STARTS:
        draw(rows, kind, options.out / f"{kind}.png")
    reporter.say(f"figures  {options.out / 'study.json'}")


def draw(rows: dict[str, Any], kind: str, path: Path) -> None:
    """Plot each score against the number of steps, a line a variant."""
    plots.lines(
        {
            label: {
                name: [(point["steps"], point[key]) for point in row[kind]]
                for name, row in rows.items()
            }
            for label, key in (
                ("Fréchet distance", "frechet"), ("judge agrees", "agreement"),
                ("precision", "precision"), ("recall", "recall"),
            )
        },
        path, x="steps of ψ", title=f"Images made from {kind} starts, as the judge sees them",
    )  # fmt: skip


def table(rows: dict[str, Any], reporter: Reporter) -> None:
    """Print a line a variant, at the last number of steps."""
    reporter.table(
        f"after {MARKS[-1]} steps of {STEP:g} from Gaussian starts",
        ("", "drift", "clean", "robust", "Fréchet", "precision", "recall", "judge agrees"),
        [
            (
                name, f"{row['drift']:.2f}", f"{row['clean']:.1%}", f"{row['robust']:.1%}",
                f"{last['frechet']:.2f}", f"{last['precision']:.2f}", f"{last['recall']:.2f}",
                f"{last['agreement']:.0%}",
            )
            for name, row in rows.items()
            for last in [row["gaussian"][-1]]
        ],
    )  # fmt: skip
