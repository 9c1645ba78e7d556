"""Kill trainings at random moments, resume them, and compare with ones that were left alone.

    python benchmarks/kill_sweep.py [--kills 40] [--seed 0] [--training cure-train]

A true SIGKILL, at a moment drawn uniformly over the time of a run or, every other time, before one
of the calls that make a write last (fsync, rename, link). A third of the runs are killed again when
they are resumed. In the end the checkpoint's tensors, metrics.jsonl and the pictures must be those
of the run that nobody killed, byte for byte. Exits with 1 if anything was lost.

The processes are forked from one that has imported all and run nothing: so torch has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import sklearn.datasets
import torch
from safetensors.numpy import load_file

import funcrobust as fr
from funcrobust import cli
from funcrobust.commands.cure_train import recipe as _cure
from funcrobust.commands.psi_train import recipe as _psi

LOADED = fr.cure, fr.psi, _cure, _psi, matplotlib.figure, sklearn.datasets
"""Imported before the forks."""

SIZE = (
    "--dataset", "digits", "--train-examples", "48", "--test-examples", "32",
    "--evaluate-examples", "16", "--evaluate-steps", "2", "--batch-size", "16",
    "--save-every", "0.05", "--name", "run",
)  # fmt: skip
TRAININGS = {
    "cure-train": ("--epochs", "3", "--robust-examples", "16", "--ema", "0", *SIZE),
    "psi-train": ("--updates", "6", "--heldout-examples", "16", "--strips", "0", *SIZE),
}
CALLS = ("fsync", "replace", "link", "rename")


def forked(words: Sequence[str], kill_call: int = 0, count_to: Path | None = None) -> int:
    """Run a command in a child; return its process. It kills itself before its ``kill_call``-th."""
    child = os.fork()
    if child:
        return child
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    count, lock = 0, threading.Lock()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                if count == kill_call:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counting

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    sys.argv = ["cli.py", *words]
    code = 1
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        if count_to is not None:
            count_to.write_text(str(count))
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def phase(run: Path) -> str:
    """Say where a run was killed, by what it left."""
    if not (run / "config.json").exists():
        return "before its folder"
    if (run / "result.json").exists():
        return "after its end"
    if (run / "checkpoint.safetensors").exists():
        return "in the last evaluation or the pictures"
    if not (run / "state.safetensors").exists():
        return "before its first state"
    lines = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
    with (run / "state.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    step = json.loads(header["__metadata__"]["funcrobust.state"])["meta"]["step"]
    recorded = json.loads(lines.splitlines()[-1])["step"] if lines.endswith(b"\n") else 0
    return "at a record" if step == recorded else "in training or its examinations"


def lost(run: Path, whole: Path) -> list[str]:
    """Return what of a run differs from the one that was left alone."""
    ours, theirs = (load_file(r / "checkpoint.safetensors") for r in (run, whole))
    found = [] if ours.keys() == theirs.keys() else ["names"]
    found += [k for k in theirs if k in ours and not np.array_equal(ours[k], theirs[k])]
    files = ["metrics.jsonl", *(p.name for p in whole.glob("*.png"))]
    found += [f for f in files if (run / f).read_bytes() != (whole / f).read_bytes()]
    return found + [str(p) for p in run.parent.rglob("*.tmp")]


def begin_or_resume(words: list[str], run: Path) -> list[str]:
    """Return the command that goes on with a run, or begins it where it has no folder yet."""
    if (run / "config.json").exists():
        return [words[0], "--resume", str(run)]
    return [*words, "--out", str(run.parent)]


def whole(words: list[str], folder: Path) -> tuple[Path, int, float]:
    """Leave a run alone; return its folder, its calls and its seconds."""
    run, calls, began = folder / words[0] / "whole" / "run", folder / "calls", time.monotonic()
    code = ended(forked([*words, "--out", str(run.parent)], count_to=calls))
    assert code == 0, f"{words[0]} fails by itself"
    return run, int(calls.read_text()), time.monotonic() - began


def sweep(
    words: list[str], left_alone: tuple[Path, int, float], kills: int, draw: random.Random,
    folder: Path,
) -> list[str]:  # fmt: skip
    """Kill ``kills`` times; return what was lost, a line each."""
    training, (expected, total, seconds) = words[0], left_alone
    found, where, done, number = [], Counter[str](), 0, 0
    while done < kills:
        number += 1
        run = folder / training / str(number) / "run"
        for again in range(2 if draw.random() < 1 / 3 else 1):
            start = begin_or_resume(words, run)
            at_call = draw.randrange(1, total + 1) if (number + again) % 2 else 0
            child = forked(start, at_call)
            if not at_call:
                time.sleep(draw.random() * seconds)
                os.kill(child, signal.SIGKILL)
            if ended(child) == -signal.SIGKILL:
                done += 1
                where[phase(run)] += 1
        for _ in range(2):  # a finished run is refused by the second
            code = ended(forked(begin_or_resume(words, run)))
        problems = lost(run, expected) if code == 2 else [f"exit code {code}"]
        found += [f"{training} {number}: {problem}" for problem in problems]
    print(f"{training}: {done} kills in {number} runs of {total} calls, {seconds:.1f} s; lost: "
          f"{len(found)}", flush=True)  # fmt: skip
    for name, count in where.most_common():
        print(f"  {count:4d} {name}")
    return found


def main() -> None:
    """Sweep one training or both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", choices=list(TRAININGS), action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = {name: [name, *options] for name, options in TRAININGS.items()}
        cure = whole(words["cure-train"], folder)
        words["psi-train"] += ["--checkpoint", str(cure[0])]
        found = []
        for name in asked.training or list(TRAININGS):
            left_alone = cure if name == "cure-train" else whole(words[name], folder)
            draw = random.Random(f"{asked.seed} {name}")
            found += sweep(words[name], left_alone, asked.kills, draw, folder)
    print("\n".join(found) or "nothing was lost")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
