"""Minutes to 30, 35, 40 and 45 % robust accuracy, method by method, over seeds, in one run.

    python benchmarks/speedrun.py                              # preact-tiny, 2.5 minutes, 3 seeds
    python benchmarks/speedrun.py --model preact-small-silu --minutes 40
    python benchmarks/speedrun.py --only TRADES --seeds 1

Each training gets the same minutes: some updates of it are timed, and its epochs and its schedule
are what ends by then. The clock runs in training alone; every half epoch the robust accuracy is
measured (PGD-10 at 8/255, random test images), and the first time that it is a target's counts.
Beside minutes stand the floating-point operations, which compare across machines. PGD-50-10 of the
end is on other images.

Every training that is done is in the JSON, and is not done again: stop it, and start it anew.
"""

from __future__ import annotations

import re
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import common
from fast_training import (
    PLAIN,
    final_figures,
    measurer,
    plain,
    preset_training,
    reached,
    timed,
    utilisation,
)

from funcrobust import data
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.core.training.updates import Update
from funcrobust.running.budget import Budget, update_seconds
from funcrobust.running.dataset import chosen_test_images

SGD = {"opt": "SGD", "delta": "none"}
PGD_2 = {"attack": "pgd", "attack_steps": 2, "alpha": 5 / 255}
METHODS: dict[str, dict[str, Any]] = {
    "preset cpu, by Muon": {},
    "preset cpu, by Muon, without CURE": {"delta": "none"},
    "preset cpu, by SGD": {"opt": "SGD"},
    PLAIN: {},  # as published, no code of ours
    "N-FGSM, average, one pixel": SGD,
    "PGD-2, average, one pixel": {**SGD, **PGD_2},
    "TRADES, average, one pixel": {**SGD, **PGD_2, "trades": 6.0},
}
TARGETS = (0.30, 0.35, 0.40, 0.45)


def eager(update: Update, **_: Any) -> Update:
    """No compiler: what a CPU trains with."""
    return update


def ours(given: dict[str, Any], dataset: data.Dataset, args: Any) -> dict[str, Any]:
    """Train by the library for so many minutes; return what was measured on the way."""
    one = CureTrain.filled({**given, "epochs": 1})
    trial = assemble(one, dataset)
    update = update_seconds(
        trial.update(eager), trial.batches, trial.state, Budget(args.minutes), one.cycle
    )
    per_epoch = trial.batches.steps_per_epoch
    epochs = max(1, round(60 * args.minutes / (update * per_epoch)))
    training = assemble(CureTrain.filled({**given, "epochs": epochs}), dataset)
    _, x, y = chosen_test_images(dataset, args.examples, 1)  # seed 0's are the final figures'
    measure = measurer(training.model, x, y, training.dtype, 10)
    run = preset_training(training, max(1, per_epoch // args.parts), eager)
    records, weights = timed(run, measure, args.device)
    seconds = records[-1]["seconds"]
    use = utilisation(training, seconds, args.device)
    return {
        "records": records, "seconds": seconds, "epochs": epochs,
        "tera_flops": use["flops_per_step"] * training.steps / 1e12, "mfu": use["mfu"],
        "final": final_figures(training.model, weights, dataset, args),
    }  # fmt: skip


def trained(name: str, seed: int, dataset: data.Dataset, args: Any) -> dict[str, Any]:
    """Train one method with one seed."""
    if name == PLAIN:
        return plain(args, dataset, args.model, 60 * args.minutes, seed)
    given = {
        "preset": "cpu", "model": args.model, "seed": seed, "device": args.device,
        **METHODS[name],
    }  # fmt: skip
    return ours(given, dataset, args)


def spread(values: list[float], form: str) -> str:
    """Mean ± standard deviation of several, or the one."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def minutes_to(runs: list[dict[str, Any]], target: float) -> str:
    """How long each took, and how many did."""
    times = [found["seconds"] / 60 for run in runs if (found := reached(run["records"], target))]
    if not times:
        return "none"
    few = "" if len(times) == len(runs) else f" ({len(times)} of {len(runs)})"
    return spread(times, "{:.1f}") + few


def show(found: dict[str, dict[str, Any]], args: Any) -> None:
    """Print the table."""
    rows = []
    for name, seeds in found.items():
        runs = list(seeds.values())
        flops = [run["tera_flops"] for run in runs if "tera_flops" in run]
        rows.append((
            name, len(runs), *(minutes_to(runs, target) for target in TARGETS),
            spread([100 * run["final"]["pgd50_10"] for run in runs], "{:.1f}"),
            spread([100 * run["final"]["clean"] for run in runs], "{:.1f}"),
            spread([run["seconds"] / 60 for run in runs], "{:.1f}"),
            f"{statistics.mean(flops):.0f}" if flops else "",
        ))  # fmt: skip
    common.show(
        f"{args.model}, {args.minutes:g} minutes, {common.device_name(args.device)}; minutes until "
        f"PGD-10 leaves so much of {args.examples} test images; the end on {args.final_examples}",
        ("method", "seeds", *(f"{t:.0%}" for t in TARGETS), "PGD-50-10, %", "clean, %", "minutes",
         "TFLOP"),
        rows,
    )  # fmt: skip


def draw(found: dict[str, dict[str, Any]], args: Any, path: Path) -> None:
    """Robust accuracy against minutes, a line a seed."""
    runs = [(name, run["records"]) for name, seeds in found.items() for run in seeds.values()]
    common.curves(
        path,
        [
            (name, [r["seconds"] / 60 for r in records], [100 * r["robust"] for r in records])
            for name, records in runs
        ],
        f"{args.model}, {common.device_name(args.device)}", "minutes of training",
        f"PGD-10 accuracy on {args.examples} test images (%)",
    )  # fmt: skip


def main() -> None:
    """Train what is not in the JSON yet, print the table, draw the curves."""
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default="preact-tiny")
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods with this in their name")
    parser.add_argument("--examples", type=int, default=1000, help="test images while training")
    parser.add_argument("--final-examples", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=2, help="measurements an epoch")
    parser.add_argument("--train-examples", type=int, help="use so many training images")
    args = parser.parse_args()
    args.autoattack = 0
    common.settle(args)
    dataset = data.load("cifar10").subset(args.train_examples, None, 0).to(args.device)
    name = f"speedrun-{re.sub('[^a-z0-9]+', '-', args.model.lower())}-{args.minutes:g}"
    found = common.all_trained(
        name, list(METHODS), partial(trained, dataset=dataset, args=args), args,
        model=args.model, minutes=args.minutes,
    )  # fmt: skip
    show(found, args)
    path = common.result_path(name, args.device, args.out)
    draw(found, args, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
