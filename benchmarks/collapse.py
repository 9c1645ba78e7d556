"""A training that is to collapse, and whether the watch sees it.

    python benchmarks/collapse.py

FGSM from the images themselves, whose catastrophic overfitting Wong et al. 2020 (arXiv:2001.03994)
describe, at ε = 16/255. It is `cure-train`'s own update, measurements and watch, but it goes on
from a shipped network, since from random weights this ball takes long to learn anything in.
``--attack n-fgsm`` is the same training with the attack that was made against the collapse.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch

import funcrobust as fr
from funcrobust import data
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.commands.cure_train.recipe import Work
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.classifier import load_classifier
from funcrobust.running.config import to_config
from funcrobust.running.loop import Plan, drive

OPTIONS: dict[str, Any] = {
    "preset": "cpu", "epsilon": 16 / 255, "alpha": 16 / 255,
    "delta": "none", "ema": 0.0, "lr_schedule": "constant", "weight_decay": 0.0,
}  # fmt: skip
SHOWN = ("accuracy", "train_clean", "train_robust", "train_worst", "test_robust", "test_worst")


def train(
    options: CureTrain, network: fr.Functional, every: int, folder: Path, reporter: Reporter
) -> dict[str, Any]:
    """Train until the watch stops it; return how it ended, and a record every so many updates."""
    dataset = data.load("cifar10").subset(options.train_examples, None, options.seed)
    dataset = dataset.to(options.device)
    training = assemble(options, dataset)
    start = training.state._replace(params=network.params, buffers=network.buffers)
    run = RunFolder.create(folder, "cure-train", to_config(options))
    work = Work(options, training, dataset, run, reporter)
    work.run.log({"epoch": 0, "step": 0, **work.examine(0, start)})
    plan = Plan(
        training.update(lambda update, **_: update), training.batches, training.steps, every,
        options.batch_size, work.examine, unit="part", watched=len(work.watched["train"].y),
    )  # fmt: skip
    outcome = drive(plan, start, run, reporter, lambda _: None)
    return {"status": outcome.status, "kept": int(outcome.state.step), "records": run.metrics()}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--network", default="cifar10-linf-small", help="shipped; goes on from it")
    parser.add_argument("--attack", default="rs-fgsm", help="rs-fgsm starts at the image here")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument("--lr-max", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=39, help="updates between two records")
    parser.add_argument("--examples", type=int, default=256, help="images behind a record")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reporter = Reporter()
    shipped = load_classifier(args.network, torch.device(args.device), reporter)
    start = {"delta_init": "zero"} if args.attack == "rs-fgsm" else {}
    options = CureTrain.filled(
        OPTIONS | start | {
            "attack": args.attack, "epochs": args.epochs, "train_examples": args.train_examples,
            "lr_max": args.lr_max, "robust_examples": args.examples, "seed": args.seed,
            "device": args.device, "model": shipped.card.model,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, reporter:
        found = train(options, shipped.model, args.every, Path(folder), reporter)
    common.show(
        f"{args.attack} from {args.network}: {found['status']}", ("updates", *SHOWN),
        [
            (r["step"], *(f"{r[key]:.1%}" if key in r else "" for key in SHOWN))
            for r in found["records"]
        ],
    )  # fmt: skip
    common.write(
        "collapse",
        {"from": args.network, "options": to_config(options), **found},
        args.device,
        args.out,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
