"""Does the watch stop what collapses, and leave alone what does not? On CIFAR-10, in minutes.

    python benchmarks/collapse.py     # 3 seeds of 6 trainings, 5 minutes on two cores

One convolution of 16 channels and a linear layer are enough for catastrophic overfitting
(Andriushchenko & Flammarion 2020, arXiv:2007.02617, section 4.3). Each training is ``cure-train``
on 10,000 random training images, without a regulariser, stopped or not by its own collapse watch.
What is stopped is then trained again with nobody watching: how much robustness is left at its end
tells whether it was right.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch
from torch import nn

from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.recipe import cure_train
from funcrobust.report.console import Reporter

TRAININGS: dict[str, dict[str, Any]] = {
    "FGSM from zero, 16/255": {"attack": "fgsm", "delta_init": "zero", "epsilon": 16 / 255},
    "FGSM from zero, 12/255": {"attack": "fgsm", "delta_init": "zero", "epsilon": 12 / 255},
    "RS-FGSM, 16/255": {"attack": "rs-fgsm", "epsilon": 16 / 255},
    "N-FGSM, 16/255": {"attack": "n-fgsm", "epsilon": 16 / 255},
    "PGD-4, 16/255": {"attack": "pgd", "attack_steps": 4, "epsilon": 16 / 255},
    "FGSM from zero, 8/255": {"attack": "fgsm", "delta_init": "zero", "epsilon": 8 / 255},
}
EPOCHS = 10


def network(num_classes: int) -> nn.Module:
    """One convolution and a linear layer, of CIFAR-10's images."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 32 * 32, num_classes),
    )  # fmt: skip


def trained(options: dict[str, Any], seed: int) -> tuple[str, list[dict[str, Any]]]:
    """Train once; return how it ended and its records."""
    with tempfile.TemporaryDirectory() as folder, Reporter.silent() as reporter:
        run = CureTrain.filled(
            {
                "model": "collapse:network", "epochs": EPOCHS, "delta": "none", "ema": 0.0,
                "lr_max": 0.01, "train_examples": 10_000, "precision": "fp32", "seed": seed,
                "evaluate_examples": 100, "out": Path(folder), "name": "run",
                **options,
            }
        )  # fmt: skip
        result = cure_train(run, reporter)
        return result.status, result.run.metrics()


def row(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the watch did, and what the training comes to where nothing stops it."""
    status, records = trained(options, seed)
    found = {"seed": seed, "status": status, "epochs": len(records), "records": records}
    if status != "finished":
        with mock.patch("funcrobust.running.loop.collapse", return_value=""):
            found["unwatched"] = trained(options, seed)[1]
    return found


def main() -> None:
    """Run all, print the table, write the JSON."""
    parser = common.arguments(__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    results = {
        name: [row(options, seed) for seed in range(flags.seeds)]
        for name, options in TRAININGS.items()
    }
    common.show(
        f"one convolution, 10,000 images of CIFAR-10, {EPOCHS} epochs",
        ("training", "stopped after epoch", "trained on", "PGD-10", "sharp PGD-10"),
        [(name, *cells(rows)) for name, rows in results.items()],
    )
    common.write("collapse", {"trainings": results}, flags.device, flags.out)


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """When each seed was stopped, and the accuracies at the end of its whole training."""
    ends = [found.get("unwatched", found["records"])[-1] for found in rows]
    stopped = [str(r["epochs"]) if r["status"] == "collapsed" else "no" for r in rows]
    figures = [
        " ".join(f"{end[f'train_{name}']:.0%}" for end in ends)
        for name in ("attacked", "robust", "worst")
    ]
    return [" ".join(stopped), *figures]


if __name__ == "__main__":
    main()
