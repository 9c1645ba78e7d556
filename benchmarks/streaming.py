"""Images that memory cannot hold: speed by worker processes, memory over an epoch, resumption.

    python benchmarks/streaming.py [--images 2000] [--workers 0 1 2 4]

A set of JPEGs of ImageNet's sizes (20 classes) is made in a temporary folder, then

- its training crops at 224x224 are decoded for one epoch, by each number of worker processes:
  images per second, the start of the processes included;
- the memory of the process and its workers together (each page shared by n counts 1/n) is read
  over that epoch: it must not grow;
- ``cure-train`` runs on a part of it, is killed (SIGKILL) in its second epoch and resumed with
  another number of workers: the checkpoint must have the bits of a run that nobody killed, and no
  worker may be left.

The images are smooth noise, whose JPEGs are smaller than photographs' (about 60 kB for 110), so
they are decoded somewhat faster.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from funcrobust import data
from funcrobust.core.randomness import generator

ROOT = Path(__file__).resolve().parent.parent
CLASSES, BATCH, SIZE = 20, 64, 224


def network(num_classes: int = CLASSES) -> nn.Module:
    """Return a network small enough for a processor at 224x224: what is timed are the images."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((3, 16, 8, 8), (16, 32, 3, 2), (32, 64, 3, 2)):
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 4, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def make_set(root: Path, images: int) -> None:
    """Write JPEGs of 300 to 600 pixels a side: train/CLASS/NUMBER.JPEG, and a tenth in val."""
    draw = np.random.default_rng(0)
    for half, count in (("train", images), ("val", images // 10)):
        for i in range(count):
            folder = root / half / f"n{i % CLASSES:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            width, height = (int(side) for side in draw.integers(300, 600, 2))
            coarse = Image.fromarray(draw.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
            image = coarse.resize((width, height), Image.Resampling.BILINEAR)
            image.save(folder / f"{i:06d}.JPEG", quality=92)


def an_epoch(root: Path, workers: int) -> dict[str, Any]:
    """Decode every training image once."""
    dataset = data.load(str(root), streaming=data.Streaming(True, SIZE, workers))
    count = len(dataset.y_train)

    def order(step: int) -> torch.Tensor:
        epoch, i = divmod(step, count // BATCH)
        return torch.randperm(count, generator=generator(0, "order", epoch))[i * BATCH :][:BATCH]

    feed = data.training_feed(dataset, order, 0)
    steps, memory, digest = count // BATCH, [], hashlib.sha256()
    began = time.perf_counter()
    for step in range(steps):
        digest.update(feed(step).numpy().tobytes())
        memory.append(megabytes())
    seconds = time.perf_counter() - began
    parts = [max(part) for part in np.array_split(memory, 4)]
    return {
        "workers": workers, "images": steps * BATCH, "images/s": round(steps * BATCH / seconds, 1),
        "peak MB by quarter": [round(part) for part in parts], "sha256": digest.hexdigest(),
    }  # fmt: skip


def family(first: int) -> list[int]:
    """Return a process and all below it."""
    found, parents = [first], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def megabytes() -> float:
    """Memory of this process and its children: each page divided by those that share it."""
    total = 0
    for pid in family(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def command(*words: str) -> list[str]:
    """Return a cure-train command of which the network is ours."""
    return [sys.executable, str(ROOT / "cli.py"), "cure-train", *words]


def killed_and_resumed(root: Path, runs: Path, examples: int) -> dict[str, Any]:
    """Train without a break, and with one; compare what is left."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    told = [
        "--dataset", str(root), "--stream", "--model", "streaming:network", "--device", "cpu",
        "--epochs", "2", "--batch-size", "32", "--train-examples", str(examples), "--lambda", "0",
        "--robust-examples", "16", "--evaluate-examples", "32", "--evaluate-steps", "2",
        "--out", str(runs), "--precision", "fp32",
    ]  # fmt: skip
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": sys.stderr}
    subprocess.run(command(*told, "--workers", "2", "--name", "whole"), check=True, **quiet)
    halted = subprocess.Popen(command(*told, "--workers", "2", "--name", "halted"), **quiet)
    records = runs / "halted" / "metrics.jsonl"
    while not (records.exists() and records.read_text().count("\n") == 1):
        if halted.poll() is not None:
            raise RuntimeError("the run ended before it was to be killed")
        time.sleep(0.05)
    time.sleep(1.0)  # into the second epoch
    workers = family(halted.pid)[1:]
    os.kill(halted.pid, signal.SIGKILL)
    halted.wait()
    time.sleep(15)  # torch's workers look for their parent every five seconds
    left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    resume = ("--resume", str(runs / "halted"), "--workers", "0")
    subprocess.run(command(*resume), check=True, **quiet)
    whole, resumed = (load_file(runs / n / "checkpoint.safetensors") for n in ("whole", "halted"))
    same = all(torch.equal(whole[name], resumed[name]) for name in {**whole, **resumed})
    return {"same bits": same, "workers": len(workers), "left after the kill": len(left)}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        make_set(root, args.images)
        kilobytes = sum(p.stat().st_size for p in root.glob("train/*/*")) / args.images / 1024
        epochs = [an_epoch(root, workers) for workers in args.workers]
        resumption = killed_and_resumed(root, Path(folder) / "runs", min(640, args.images))
    common.show(
        f"{args.images} JPEGs of {kilobytes:.0f} kB, cropped to {SIZE}x{SIZE}",
        ("workers", "images/s", "peak MB, by quarter of the epoch"),
        [(e["workers"], e["images/s"], e["peak MB by quarter"]) for e in epochs],
    )
    same = len({e["sha256"] for e in epochs}) == 1
    print(f"the same bits by any number of workers: {same}; killed and resumed: {resumption}")
    record = {
        "images": args.images, "kilobytes": round(kilobytes), "epochs": epochs,
        "same_bits_by_any_number_of_workers": same, "resumption": resumption,
        "processors": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    common.write("streaming", record, args.device, args.out)


if __name__ == "__main__":
    main()
