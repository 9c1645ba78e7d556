"""Does the watch stop what collapses, and leave alone what does not? On CIFAR-10, in minutes.

    python benchmarks/collapse.py     # 3 seeds of 12 trainings, half an hour of two cores
    python benchmarks/collapse.py --only CURE --seeds 1

One convolution of 16 channels and a linear layer are enough for catastrophic overfitting
(Andriushchenko & Flammarion 2020, arXiv:2007.02617, section 4.3). Each training is ``cure-train``
on 10,000 random training images, stopped or not by its own collapse watch: six attacks without a
regulariser, and the one that collapses soonest with each of those that shall prevent it.
What is stopped is then trained again with nobody watching: how much robustness is left at its end
tells whether it was right.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import common
from torch import nn

from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.recipe import cure_train
from funcrobust.report.console import Reporter

ZERO = {"attack": "fgsm", "delta_init": "zero"}  # plain FGSM
WHOLE = {"cure_every": 1, "cure_fraction": 1.0}  # at every update, on the whole batch
ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM from zero, 16/255": {**ZERO, "epsilon": 16 / 255},
    "FGSM from zero, 12/255": {**ZERO, "epsilon": 12 / 255},
    "FGSM from zero, 8/255": {**ZERO, "epsilon": 8 / 255},
    "RS-FGSM, 16/255": {"attack": "rs-fgsm", "epsilon": 16 / 255},
    "N-FGSM, 16/255": {"attack": "n-fgsm", "epsilon": 16 / 255},
    "PGD-4, 16/255": {"attack": "pgd", "attack_steps": 4, "epsilon": 16 / 255},
}
REGULARISED: dict[str, dict[str, Any]] = {
    "CURE, λ = 0.5": {"delta": "classic", "lam": 0.5},
    "CURE, λ = 5": {"delta": "classic", "lam": 5.0},
    "GradAlign, 0.2": {"regularisers": {"gradient-alignment": 0.2}},
    "GradAlign, 2": {"regularisers": {"gradient-alignment": 2.0}},
    "LLR, 4": {"regularisers": {"local-linearity": 4.0}},
    "ELLE, 1000": {"regularisers": {"elle": 1000.0}},
}
TRAININGS = ATTACKS | {
    f"the first, {name}": {**ATTACKS["FGSM from zero, 16/255"], **WHOLE, **options}
    for name, options in REGULARISED.items()
}
EPOCHS = 10
ACCURACIES = ("attacked", "robust", "worst", "clean")
"""Of 256 training images: under the attack trained on, PGD-10, sharp PGD-10 besides, and none."""


def network(num_classes: int) -> nn.Module:
    """One convolution and a linear layer, of CIFAR-10's images."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 32 * 32, num_classes),
    )  # fmt: skip


def trained(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once; return how it ended, after how many seconds of updates, and the accuracies."""
    with tempfile.TemporaryDirectory() as folder, Reporter.silent() as reporter:
        run = CureTrain.filled(
            {
                "model": "collapse:network", "epochs": EPOCHS, "delta": "none", "ema": 0.0,
                "opt": "SGD", "lr_max": 0.01, "train_examples": 10_000, "precision": "fp32",
                "seed": seed, "evaluate_examples": 100, "out": Path(folder), "name": "run",
                **options,
            }
        )  # fmt: skip
        result = cure_train(run, reporter)
        seconds = result.metrics["seconds"]
        epochs = [{n: round(r[f"train_{n}"], 4) for n in ACCURACIES} for r in result.run.metrics()]
        return {"status": result.status, "seconds": seconds, "epochs": epochs}


def row(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The training as it ends where nothing stops it, and the epoch after which the watch does."""
    watched = trained(options, seed)
    found = {"seed": seed, "stopped": None, **watched}
    if watched["status"] == "collapsed":
        found["stopped"] = len(watched["epochs"])
        with mock.patch("funcrobust.running.loop.collapse", return_value=""):
            found |= trained(options, seed)
    return found


def main() -> None:
    """Run all, print the table, write the JSON."""
    parser = common.arguments(__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="those with this in their name; the JSON keeps the others"
    )
    flags = parser.parse_args()
    common.settle(flags)
    results = {}
    for name, options in TRAININGS.items():
        if flags.only in name:
            results[name] = [row(options, seed) for seed in range(flags.seeds)]
            print(name, *cells(results[name]), sep=" | ", flush=True)
    common.show(
        f"one convolution, 10,000 images of CIFAR-10, {EPOCHS} epochs",
        ("training", "stopped after epoch", "trained on", "PGD-10", "sharp PGD-10", "clean", "s"),
        [(name, *cells(rows)) for name, rows in results.items()],
    )
    before = common.result_path("collapse", flags.device, flags.out)
    if flags.only and before.exists():
        results = json.loads(before.read_text())["trainings"] | results
    common.write("collapse", {"trainings": results}, flags.device, flags.out)


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """When each seed was stopped, and the accuracies at the end of its whole training."""
    ends = [found["epochs"][-1] for found in rows]
    stopped = [str(found["stopped"] or "no") for found in rows]
    figures = [" ".join(f"{end[name]:.0%}" for end in ends) for name in ACCURACIES]
    seconds = " ".join(f"{found['seconds']:.0f}" for found in rows)
    return [" ".join(stopped), *figures, seconds]


if __name__ == "__main__":
    main()
