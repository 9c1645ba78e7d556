"""Train a network that may be shipped, and measure it: PGD-50-10 of all, AutoAttack of a thousand.

    python benchmarks/ship.py --minutes 6
    python benchmarks/ship.py --train "--preset strong --epochs 30"

The run folder lies beside the JSON, and keeps its checkpoint if an evaluation is cut short. Both
evaluations run at the same time, since neither fills a GPU: their seconds are not theirs alone.
There attacks search in bfloat16, and what they find counts in float32. The JSON has what
``evaluate`` says, of every image too.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

CLI = Path(__file__).parents[1] / "cli.py"
PGD = ("--attack", "pgd", "--steps", "50", "--restarts", "10")


def begun(*words: str) -> subprocess.Popen[bytes]:
    """Start a command of the library's own, which says what it says."""
    print(f"funcrobust {shlex.join(words)}", flush=True)
    return subprocess.Popen([sys.executable, str(CLI), *words])


def evaluations(run: Path, args: Any) -> dict[str, dict[str, Any]]:
    """What both evaluations found; nothing of one that failed."""
    on_gpu = args.device.startswith("cuda")
    shared = ["--device", args.device, "--no-checks", "--no-page"]
    shared += ["--search", "bf16", "--batch-size", "2000"] if on_gpu else []
    asked = {
        "PGD-50-10": [*PGD, "--examples", str(args.examples)],
        "AutoAttack": ["--autoattack", "--examples", str(args.autoattack)],
    }
    files = {name: run / f"{name}.json" for name in asked}
    running = [
        begun("evaluate", str(run), *words, *shared, "--json", str(files[name]))
        for name, words in asked.items()
    ]
    for process in running:
        process.wait()
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="of training, measured and drawn")
    parser.add_argument("--train", default="--preset fast --delta none", help="of cure-train")
    parser.add_argument("--examples", type=int, default=10_000, help="test images under PGD-50-10")
    parser.add_argument("--autoattack", type=int, default=1000, help="test images under AutoAttack")
    args = parser.parse_args()
    words = shlex.split(args.train)
    words += ["--minutes", str(args.minutes)] if args.minutes else []
    name = time.strftime("ship-%Y%m%d-%H%M%S")
    words += ["--device", args.device, "--out", str(args.out), "--name", name]
    if begun("cure-train", *words).wait():
        sys.exit("the training has failed")
    run = args.out / name
    found = evaluations(run, args)
    common.write("ship", {"run": name, "train": words, "evaluations": found}, args.device, args.out)
    common.show(
        f"{name}, {common.device_name(args.device)}",
        ("attack", "images", "clean", "withstood", "interval"),
        [
            (attack, f["examples"], f"{f['clean']:.1%}", f"{f['robust']:.1%}",
             " to ".join(f"{end:.1%}" for end in f["robust_interval"]))
            for attack, f in found.items()
        ],
    )  # fmt: skip
    if len(found) < 2:
        sys.exit("an evaluation has failed")


if __name__ == "__main__":
    main()
