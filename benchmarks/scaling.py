"""Several processes against one: the same training and the same evaluation, timed side by side.

    python benchmarks/scaling.py [--processes 2]

One process of one thread, one of as many threads as there are processes, so many processes of
one thread: each does `cure-train` (preact-tiny, an epoch of 12,800 CIFAR-10 images, batch 256) and
`evaluate` (sharp PGD, 500 images). What is timed is the training and the attack, not the start.
Plots the throughput as a share of what one thread has, times the number of processes.

Takes some 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import common

from funcrobust.report import plots

CLI = str(Path(__file__).parents[1] / "cli.py")
TRAINING = (
    "cure-train", "--preset", "cpu", "--opt", "SGD", "--dataset", "cifar10",
    "--train-examples", "12800", "--batch-size", "256", "--epochs", "1",
    "--evaluate-examples", "32", "--robust-examples", "32", "--evaluate-steps", "1", "--seed", "0",
)  # fmt: skip
EVALUATION = ("evaluate", "cifar10-linf-tiny", "--no-checks", "--no-page")


def launched(words: tuple[str, ...], processes: int, threads: int, folder: str) -> None:
    """Run a command on so many processes of so many threads."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), CLI, *words], cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True, capture_output=True,
    )  # fmt: skip


def training(processes: int, threads: int) -> float:
    """Return the seconds of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        launched((*TRAINING, "--name", "run"), processes, threads, folder)
        result = json.loads((Path(folder) / "runs" / "run" / "result.json").read_text())
    return float(result["metrics"]["seconds"])


def evaluation(processes: int, threads: int) -> float:
    """Return the seconds of the attack."""
    with tempfile.TemporaryDirectory() as folder:
        launched((*EVALUATION, "--json", "found.json"), processes, threads, folder)
        return float(json.loads((Path(folder) / "found.json").read_text())["seconds"])


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.set_defaults(repeats=1)
    args = parser.parse_args()
    n = args.processes
    ways = {"1 process, 1 thread": (1, 1), f"1 process, {n} threads": (1, n),
            f"{n} processes, 1 thread": (n, 1)}  # fmt: skip
    seconds = {
        what: {way: median(measure(*how) for _ in range(args.repeats)) for way, how in ways.items()}
        for what, measure in (("training", training), ("evaluation", evaluation))
    }
    first = next(iter(ways))
    speed = {
        what: {way: took[first] / s for way, s in took.items()} for what, took in seconds.items()
    }
    common.show(
        f"throughput against {first}", ("", *speed),
        [(way, *(f"{speed[what][way]:.2f} x" for what in speed)) for way in ways],
    )  # fmt: skip
    panels = {
        what: {
            "threads": [(1, 1.0), (n, speed[what][f"1 process, {n} threads"])],
            "processes": [(1, 1.0), (n, speed[what][f"{n} processes, 1 thread"])],
            "as many times as fast": [(1, 1.0), (n, float(n))],
        }
        for what in speed
    }
    picture = Path(args.out) / "scaling.png"
    plots.lines(panels, picture, x="threads, or processes", title="throughput against one thread")
    common.write("scaling", {"seconds": seconds, "throughput": speed}, args.device, args.out)


if __name__ == "__main__":
    main()
