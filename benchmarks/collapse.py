"""A training that collapses, and whether the watch sees it; beside it one that does not.

    python benchmarks/collapse.py

FGSM from the images themselves (no random start), whose catastrophic overfitting Wong et al. 2020
(arXiv:2001.03994) describe, and N-FGSM in the same ball, which was made against it. Both are
`cure-train` as a user runs it, with no other option changed between them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch

from funcrobust.commands.cure_train import CureTrain, run
from funcrobust.report.console import Reporter

SHARED: dict[str, Any] = {
    "preset": "cpu", "epsilon": 16 / 255, "alpha": 16 / 255, "delta": "none", "ema": 0.0,
    "lr_schedule": "constant", "lr_max": 0.05, "weight_decay": 0.0, "batch_size": 32,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "FGSM from zero": {"attack": "rs-fgsm", "delta_init": "zero"},
    "N-FGSM": {"attack": "n-fgsm"},
}
SHOWN = ("accuracy", "train_clean", "train_robust", "train_worst", "test_robust", "test_worst")


def one(given: dict[str, Any], args: Any, out: Path) -> dict[str, Any]:
    """Train; return how it ended, the command, and every epoch's record."""
    sizes = {"epochs": args.epochs, "train_examples": args.train_examples, "seed": args.seed}
    options = CureTrain.filled(
        SHARED | given | sizes | {"device": args.device, "out": out, "evaluate_examples": 256}
    )
    with Reporter() as reporter:
        result = run(options, reporter)
    console = result.run.file("console.log").read_text().splitlines()
    return {
        "status": result.status,
        "warning": next((line for line in console if "keeping the parameters" in line), ""),
        "figures": result.metrics,
        "records": result.run.metrics(),
    }


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--train-examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=RUNS, help="one of the two")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: one(given, args, Path(folder))
            for name, given in RUNS.items()
            if args.only in (None, name)
        }
    for name, result in found.items():
        common.show(
            f"{name}: {result['status']}", ("epoch", *SHOWN),
            [(r["epoch"], *(f"{r[key]:.1%}" for key in SHOWN)) for r in result["records"]],
        )  # fmt: skip
    common.write("collapse", {"options": SHARED, "runs": found}, args.device, args.out)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
