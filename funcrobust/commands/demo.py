"""Everything once: get CIFAR-10, cure-train, psi-train, evaluate, and draw."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from funcrobust.commands import apply, cure_train, evaluate, psi_train
from funcrobust.running.groups import Machine
from funcrobust.running.options import unless
from funcrobust.running.places import Folder

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter
    from funcrobust.running.holding import Result


@dataclass(frozen=True, kw_only=True)
class Demo(Machine):
    """Demo."""

    dataset: Literal["cifar10", "digits"] | None = None
    """Left out: CIFAR-10, or scikit-learn's 8x8 digits where that is out of reach."""
    out: Folder = Path("runs")
    """Where its run folders go."""
    minutes: Annotated[float, Gt(0), unless(dataset="digits")] = 8.0
    """What it may take on this machine: both trainings are as long as that lets them be. (On the
    digits they are as long as their presets say.)"""


NETWORK = "preact-tiny-silu"
"""A smooth one: ψ moves along the input gradient, which a ReLU network has in pieces."""
DRAWN = 500
"""Images that each network draws, to be compared."""
TRAINED, SHOWN = 0.4, 0.11
"""Shares of the minutes for cure-train, and for the last figures and pictures; the rest is
psi-train's."""
WATCHED = 64
"""Images that are attacked after every epoch: a figure to see, not one to quote."""
QUICK, LEAST = 1000, 50
"""Updates of psi-train on the digits, and where the minutes are spent already."""


def run(options: Demo, reporter: Reporter) -> Result:
    """Data, cure-train, psi-train, evaluate, generate; end with the table and the files.

    On the data asked for: else on CIFAR-10, or on the embedded digits if it is out of reach.
    """
    dataset = options.dataset or _reachable_dataset(reporter)
    shared: dict[str, Any] = {
        "dataset": dataset, "out": options.out, "seed": options.seed, "device": options.device,
    }  # fmt: skip
    timed, began = dataset != "digits", time.monotonic()
    given = shared | {"model": NETWORK} | ({"robust_examples": WATCHED} if timed else {})
    robust = _in_time(
        cure_train.run, lambda length: cure_train.CureTrain.filled(given | length), {"epochs": 1},
        options.minutes * TRAINED if timed else None, reporter,
    )  # fmt: skip
    if robust.status in ("interrupted", "diverged"):
        return robust
    transfer = shared | {"checkpoint": str(robust.run.path)} | ({} if timed else {"updates": QUICK})
    left = options.minutes * (1 - SHOWN) - (time.monotonic() - began) / 60
    moved = _in_time(
        psi_train.run, lambda length: psi_train.PsiTrain.filled(transfer | length),
        {"updates": LEAST}, left if timed else None, reporter,
    )  # fmt: skip
    if moved.status in ("interrupted", "diverged"):
        return moved
    runs = {"cure-train": robust.run.path, "psi-train": moved.run.path}
    figures = {
        name: evaluate.run(
            evaluate.Evaluate(
                checkpoint=str(path),
                device=options.device,
                seed=options.seed,
                examples=1000,
                attack="pgd",
                checks=False,
            ),
            reporter,
        )
        for name, path in runs.items()
    }
    drawing = apply.Apply(
        task="generation", checkpoints=tuple(map(str, runs.values())), device=options.device,
        examples=DRAWN, seed=options.seed, png=moved.run.file("generated.png"),
    )  # fmt: skip
    *_, before, after = apply.run(drawing, reporter).values()  # the start comes first
    drawn = dict(zip(runs, (before, after), strict=True))
    _summary(robust, moved, figures, drawn, reporter)
    return moved


def _in_time(
    train: Callable[[Any, Reporter], Result], options: Callable[[dict[str, Any]], Any],
    least: dict[str, Any], minutes: float | None, reporter: Reporter,
) -> Result:  # fmt: skip
    """Train for so long, or as long as the preset says; the least where not even that fits."""
    from funcrobust.running.budget import TooShortError

    if minutes is None:
        return train(options({}), reporter)
    try:
        return train(options({"minutes": max(minutes, 1e-3)}), reporter)
    except TooShortError as error:
        (said,) = (f"{name} = {value}" for name, value in least.items())
        reporter.warn(f"{error}; the demo takes {said}")
        return train(options(least), reporter)


def _reachable_dataset(reporter: Reporter) -> str:
    from funcrobust import data

    try:
        data.load("cifar10", progress=reporter.progress_callback())
    except data.DataUnavailable as error:
        reporter.warn(f"{error}")
        reporter.warn("CIFAR-10 is not in reach: the demo runs on scikit-learn's 8x8 digits")
        return "digits"
    return "cifar10"


def _summary(
    robust: Result, moved: Result, figures: dict[str, dict[str, Any]],
    drawn: dict[str, dict[str, float]], reporter: Reporter,
) -> None:  # fmt: skip
    import torch

    from funcrobust.commands.apply.drawing import said
    from funcrobust.report.runs import EVALUATION_PAGE, REPORT

    drifts = {"cure-train": moved.metrics["drift_before"], "psi-train": moved.metrics["drift"]}
    judged = list(dict.fromkeys(key for scores in drawn.values() for key in scores))
    reporter.table(
        f"demo on {robust.run.config['dataset']}, {torch.get_num_threads()} threads",
        ("after", "clean", "PGD-20", "ψ-drift", *judged),
        [
            (
                name, f"{found['clean']:.1%}", f"{found['robust']:.1%}", f"{drifts[name]:.3f}",
                *(said(key, drawn[name][key]) for key in judged),
            )
            for name, found in figures.items()
        ],
    )  # fmt: skip
    reporter.say("pictures")
    for result in (robust, moved):
        for path in sorted(result.run.path.glob("*.png")):
            reporter.say(f"  {path}")
    reporter.say("run folders, each with a page of the run and of its evaluation")
    for result in (robust, moved):
        reporter.say(f"  {result.run.path}/{REPORT}, {EVALUATION_PAGE}")
