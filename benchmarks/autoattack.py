"""AutoAttack's standard ensemble: `evaluate --autoattack`'s against the authors' package.

    python benchmarks/autoattack.py [--checkpoint cifar10-linf-tiny] [--examples 100] [--search]
        [--processes 2]

Both attack the same random CIFAR-10 test images in one process: the reference implementation
(pyautoattack, as its documentation uses it, on the plain nn.Module), and ours, attack by attack on
those that withstood the ones before. Both draw their own random starts, so an example may fall to
one and not to the other: the disagreements are counted. With ``--search`` ours is run once more,
searching in bfloat16 as `evaluate --search bf16` does; with ``--processes`` once more by so many
processes of torchrun, which share the images and the threads.

Takes some 5 minutes on 2 CPU cores.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from safetensors.torch import load_file
from torch import Tensor

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.commands.evaluate.attacking import autoattack, in_half
from funcrobust.core import evaluation
from funcrobust.core.evaluation import Run
from funcrobust.core.evaluation.ensemble import attack_the_standing, look
from funcrobust.running.dataset import chosen_test_images

ROOT = Path(__file__).parents[1]
NAMES = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}


def ours(
    name: str, x: Tensor, y: Tensor, numbers: Tensor, device: str, *, half: bool = False
) -> dict[str, Any]:
    """Standing after each attack, and its seconds."""
    module, card = checkpoints.load(name)
    model = fr.functionalize(module).to(device, torch.channels_last)
    outcome = look(model.predict, model.params, x, y)
    rows = {}
    for k, (attack, adversary) in enumerate(
        autoattack(fr.linf(card.epsilon), card.num_classes).items(), start=1
    ):
        began = time.perf_counter()
        if half:
            adversary = in_half(adversary, torch.bfloat16)
        run = Run(numbers, 0, f"evaluate/{attack}")
        outcome = attack_the_standing(model.predict, model.params, y, outcome, k, adversary, run)
        rows[attack] = {"seconds": time.perf_counter() - began, "robust": outcome.robust}
    return rows


def shared(
    name: str, examples: int, seed: int, processes: int, threads: int, device: str
) -> dict[str, Any]:  # fmt: skip
    """Standing after each attack, and the seconds of all: `evaluate` under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        saved, figures = Path(folder, "found.safetensors"), Path(folder, "figures.json")
        words = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(processes), str(ROOT / "cli.py"), "evaluate", name, "--autoattack", "--examples",
            str(examples), "--seed", str(seed), "--no-checks", "--no-page", "--save", str(saved),
            "--json", str(figures),
        ]  # fmt: skip
        given = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // processes))}
        subprocess.run(words, env=given, check=True, capture_output=True)
        seconds = json.loads(figures.read_text())["seconds"]
        fell_to = load_file(saved, device=device)["fell_to"]
    standing = {k: (fell_to < 0) | (fell_to > k) for k in range(1, len(NAMES) + 1)}
    last = list(NAMES)[-1]  # which has the seconds of all four
    return {
        attack: {"seconds": seconds if attack == last else 0.0, "robust": standing[k]}
        for k, attack in enumerate(NAMES, start=1)
    }


def reference(name: str, x: Tensor, y: Tensor, device: str) -> dict[str, Any]:
    """The same of pyautoattack, whose attacks are run one by one to have the time of each.

    Nothing where it is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        return {}

    module, card = checkpoints.load(name)
    module = module.to(device).eval()
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    rows, standing = {}, evaluation.correct(lambda _, x: module(x), {}, x, y)
    for attack, theirs in NAMES.items():
        began = time.perf_counter()
        left = standing.nonzero().squeeze(1)
        if len(left):
            runner = AutoAttack(
                module, norm="Linf", eps=card.epsilon, version="custom", attacks=[theirs],
                device=device, seed=0,
            )  # fmt: skip
            # The standard version's, which "custom" leaves at those of the plus version.
            runner.apgd.n_restarts = runner.fab.n_restarts = 1
            runner.apgd_targeted.n_restarts, runner.apgd_targeted.n_target_classes = 1, 9
            images, _ = runner.run_standard_evaluation(x[left], y[left], batch_size=250)
            with torch.no_grad():
                standing = standing.index_copy(0, left, module(images).argmax(1) == y[left])
        rows[attack] = {"seconds": time.perf_counter() - began, "robust": standing}
    return rows


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="cifar10-linf-tiny")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--search", action="store_true", help="ours in bfloat16 as well")
    parser.add_argument("--processes", type=int, help="ours by so many processes as well")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    common.settle(args)
    numbers, x, y = chosen_test_images(data.load("cifar10"), args.examples, args.seed)
    x, y = data.as_float(x).to(args.device), y.to(args.device)
    given = (args.checkpoint, x, y)
    found = {"ours": ours(*given, numbers.to(args.device), args.device)}
    if args.search:
        found["in bf16"] = ours(*given, numbers.to(args.device), args.device, half=True)
    if args.processes:
        count = (args.examples, args.seed, args.processes, args.threads, args.device)
        found[f"{args.processes} processes"] = shared(args.checkpoint, *count)
    theirs = reference(*given, args.device)
    seconds = {who: sum(row["seconds"] for row in rows.values()) for who, rows in found.items()}
    apart, ratios = dict[str, Any](), dict[str, float]()
    if theirs:
        total = sum(row["seconds"] for row in theirs.values())
        ratios = {who: total / s for who, s in seconds.items()}
        apart = {
            who: {
                attack: int((rows[attack]["robust"] ^ row["robust"]).sum())
                for attack, row in theirs.items()
            }
            for who, rows in found.items()
        }
        found, seconds = found | {"pyautoattack": theirs}, seconds | {"pyautoattack": total}
    table = [
        (attack, *(f"{rows[attack]['robust'].double().mean():.1%}" for rows in found.values()),
         ", ".join(str(a[attack]) for a in apart.values()),
         *(f"{rows[attack]['seconds']:.1f}" for rows in found.values()))
        for attack in NAMES
    ]  # fmt: skip
    table.append(("all", *[""] * (len(found) + 1), *(f"{s:.1f}" for s in seconds.values())))
    said = ", ".join(f"{ratio:.2f} x ({who})" for who, ratio in ratios.items())
    said = f"{said} the throughput" if said else "nothing to compare with: no pyautoattack here"
    common.show(
        f"AutoAttack, {args.checkpoint}, {len(y)} random images: {said}",
        ("standing after", *found, "apart", *(f"{who}, seconds" for who in found)), table,
    )  # fmt: skip
    record = {
        "checkpoint": args.checkpoint, "examples": len(y), "seed": args.seed,
        "seconds": seconds, "throughput_ratio": ratios, "disagreements": apart,
        "missing": [] if theirs else ["pyautoattack"],
        "rows": {
            who: {
                attack: {"seconds": row["seconds"], "standing": int(row["robust"].sum())}
                for attack, row in rows.items()
            }
            for who, rows in found.items()
        },
    }  # fmt: skip
    common.write("autoattack", record, args.device, args.out)


if __name__ == "__main__":
    main()
