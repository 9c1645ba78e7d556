"""Does a regulariser pay where nothing collapses? At equal updates, and at equal time.

    python benchmarks/regularisers.py               # 3 seeds of 15 trainings, 6 hours of a core
    python benchmarks/regularisers.py --only CURE --seeds 1

Each training is ``cure-train``'s preset for a CPU (N-FGSM at 8/255, weight average) with one
regulariser, rationed as CURE is there, or none. None is trained for as many updates as the others,
and for an epoch more, which is as much time as the dearest takes (the seconds stand in the table);
and once with an attack that ascends the log-odds of ten times the logits, the sharper gradient that
finds more in an evaluation. And with less of the regulariser that every training has, the random
shift of its images. All are by SGD; the last rows are by Muon, at as many updates and at half.
On random test images: clean, PGD-20, and sharp PGD-20 besides; the last also as the difference to
none of the same seed, which has the same start, the same batches and the same test images. What
regularisers do where training collapses is `collapse.py`'s question.

Every training that is done is in the JSON, and is not done again: stop it, and start it anew.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import common
from scipy import stats

import funcrobust as fr
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.compose import Composition
from funcrobust.commands.cure_train.recipe import cure_train
from funcrobust.report.console import Reporter

NONE: dict[str, Any] = {"delta": "none"}
EPOCHS = 4
SHIFT = 4
"""Pixels, as in the literature; the rows below shift by fewer."""
TRAININGS: dict[str, dict[str, Any]] = {
    "none": NONE,
    "none, an epoch more": {**NONE, "epochs": EPOCHS + 1},
    "CURE, h = 3, λ = 0.5": {"delta": "classic", "h": 3.0, "lam": 0.5},
    "GradAlign, 0.2": {**NONE, "regularisers": {"gradient-alignment": 0.2}},
    "LLR, 4": {**NONE, "regularisers": {"local-linearity": 4.0}},
    "LLR, 0.5": {**NONE, "regularisers": {"local-linearity": 0.5}},
    "ELLE, 1000": {**NONE, "regularisers": {"elle": 1000.0}},
    "input-gradient norm, 0.1": {**NONE, "regularisers": {"input-gradient-norm": 0.1}},
}
SHARP = "none, attacked at ten times the logits"
TRAININGS[SHARP] = NONE
TRAININGS |= {
    f"none, shifted by {n} pixels, not {SHIFT}": {**NONE, "padding": n} for n in (1, 2, 0)
}
MUON = {**NONE, "opt": "Muon", "padding": 1}
TRAININGS |= {
    f"none, shifted by 1 pixels, by Muon{rest}": {**MUON, **other}
    for rest, other in ((", two epochs", {"epochs": 2}), ("", {}))
}
TRAININGS["none, shifted by 1 pixels, at a rate of 0.4"] = {**NONE, "padding": 1, "lr_max": 0.4}
FIGURES = ("clean", "pgd20", "worst")


def sharply(self: Composition, modes: fr.Modes, _: fr.Batch) -> fr.Perturbation:
    """The attack of training on the log-odds of ten times the logits."""
    return self.attack.perturb(fr.log_odds(modes.training, temperature=10.0))


def trained(name: str, seed: int, examples: int) -> dict[str, float]:
    """Train once; return its figures and the seconds of its updates."""
    if name == SHARP:
        with mock.patch.object(Composition, "perturbation", sharply):
            return by_command(TRAININGS[name], seed, examples)
    return by_command(TRAININGS[name], seed, examples)


def by_command(options: dict[str, Any], seed: int, examples: int) -> dict[str, float]:
    """Run ``cure-train``."""
    with tempfile.TemporaryDirectory() as folder, Reporter.silent() as reporter:
        given = {
            "preset": "cpu", "epochs": EPOCHS, "seed": seed, "evaluate_steps": 20,
            "evaluate_examples": examples, "robust_examples": 64, "out": Path(folder),
            "padding": SHIFT, "opt": "SGD", **options,
        }  # fmt: skip
        return dict(cure_train(CureTrain.filled(given), reporter).metrics)


def interval(values: list[float], form: str = ".1f") -> str:
    """Mean and half of its 95 % interval by Student's t, in percent."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:{form}}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:{form}} ± {100 * half:.1f}"


def against(rows: dict[str, Any], base: dict[str, Any]) -> str:
    """Return how many points of the worst case are gained on ``base``, seed by seed."""
    gained = [rows[seed]["worst"] - base[seed]["worst"] for seed in rows if seed in base]
    return interval(gained, "+.1f") if gained and rows is not base else ""


def main() -> None:
    """Train what is not in the JSON yet, print the table."""
    parser = common.arguments(__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="those with this in their name")
    parser.add_argument("--examples", type=int, default=2000, help="random test images")
    flags = parser.parse_args()
    common.settle(flags)
    found = common.all_trained(
        "regularisers", list(TRAININGS), partial(trained, examples=flags.examples), flags,
        epochs=EPOCHS, examples=flags.examples,
    )  # fmt: skip
    common.show(
        f"preset cpu, {EPOCHS} epochs, {flags.examples} test images, %, mean and 95 % interval",
        ("regulariser", "seeds", "clean", "PGD-20", "sharp PGD-20 besides", "against none", "s"),
        [
            (name, len(rows), *(interval([row[f] for row in rows.values()]) for f in FIGURES),
             against(rows, found.get("none", {})),
             f"{statistics.mean(row['seconds'] for row in rows.values()):.0f}")
            for name, rows in found.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
