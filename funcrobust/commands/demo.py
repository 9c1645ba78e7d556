"""``demo``: the whole path once, on CIFAR-10, or on the embedded digits if it is out of reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from funcrobust import data
from funcrobust.commands.cure_train import presets
from funcrobust.commands.cure_train.run import Result, cure_train
from funcrobust.commands.evaluate import evaluate
from funcrobust.commands.generate import generate
from funcrobust.commands.psi_train.run import psi_train
from funcrobust.data import DataUnavailable
from funcrobust.report.console import Reporter
from funcrobust.running.machine import pick_device
from funcrobust.running.options import PsiOptions


def demo(out: Path, seed: int, reporter: Reporter) -> str:
    """Data, cure-train, psi-train, evaluate, generate; end with the table and the files."""
    dataset = _reachable_dataset(reporter)
    device = pick_device("auto")
    shared = {"dataset": dataset, "out": out, "seed": seed}
    robust = cure_train(
        presets.cure_options(shared | {"argv": _argv("cure-train", dataset, seed)}, "auto", device),
        reporter,
    )
    if robust.status in ("interrupted", "diverged"):
        return robust.status
    options = presets.fill(PsiOptions(), shared | {"checkpoint": str(robust.run.path)})
    argv = (*_argv("psi-train", dataset, seed), "--checkpoint", str(robust.run.path))
    moved = psi_train(replace(options, argv=argv), reporter)
    if moved.status in ("interrupted", "diverged"):
        return moved.status
    runs = {"cure-train": robust.run.path, "psi-train": moved.run.path}
    figures = {
        name: evaluate(str(path), reporter, json_file=path / "evaluation.json")
        for name, path in runs.items()
    }
    generate([str(path) for path in runs.values()], reporter, png=moved.run.file("generated.png"))
    _summary(robust, moved, figures, reporter)
    return "finished"


def _reachable_dataset(reporter: Reporter) -> str:
    try:
        data.load("cifar10", progress=reporter.progress_callback())
    except DataUnavailable as error:
        reporter.warn(f"{error}")
        reporter.warn("CIFAR-10 is not in reach: the demo runs on scikit-learn's 8x8 digits")
        return "digits"
    return "cifar10"


def _argv(command: str, dataset: str, seed: int) -> tuple[str, ...]:
    return (command, "--dataset", dataset, "--seed", str(seed))


def _summary(
    robust: Result,
    moved: Result,
    figures: dict[str, dict[str, object]],
    reporter: Reporter,
) -> None:
    drifts = {"cure-train": moved.metrics["drift_before"], "psi-train": moved.metrics["drift"]}
    reporter.table(
        f"demo on {robust.run.config['dataset']}, {torch.get_num_threads()} threads",
        ("after", "clean", "PGD-20", "ψ-drift"),
        [
            (name, f"{found['clean']:.1%}", f"{found['robust']:.1%}", f"{drifts[name]:.3f}")
            for name, found in figures.items()
        ],
    )
    reporter.say("pictures")
    for result in (robust, moved):
        for path in sorted(result.run.path.glob("*.png")):
            reporter.say(f"  {path}")
    reporter.say("run folders")
    for result in (robust, moved):
        reporter.say(f"  {result.run.path}")
