"""Every reader of files, and bytes to break it with: `CASES`, `mutated`, `read`.

As a script it goes on for as long as it is told, and says what it found::

    python tests/fuzzing.py --seconds 600
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from funcrobust import checkpoints, data, models
from funcrobust.checkpoints import Card
from funcrobust.commands.apply.pictures import read_images
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.evaluate import saving
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import Outcome
from funcrobust.data.archives import members
from funcrobust.data.pickles import read_pickle
from funcrobust.data.sets.cifar10 import _pickled_batch
from funcrobust.report.runs import RunFolder
from funcrobust.running.config import resumed, to_config


@dataclass(frozen=True)
class Case:
    """A reader: what it is given, where that lies in a folder, and how it is called."""

    file: str
    seed: Callable[[Path], bytes]
    """Makes a folder in which the reader succeeds, and returns the file's bytes."""
    call: Callable[[Path], object]


# --- what the readers succeed with --------------------------------------------------------------


@cache
def _network() -> nn.Module:
    return models.build("resnet20", seed=1)


def _state() -> dict[str, torch.Tensor]:
    return _network().state_dict()


def _checkpoint(folder: Path) -> bytes:
    card = Card("resnet20", 10, (3, 32, 32), (0.5,) * 3, (0.2,) * 3, "cifar10", metrics={"a": 0.5})
    state = _state() | {"mean": torch.full((1, 3, 1, 1), 0.5), "std": torch.full((1, 3, 1, 1), 0.2)}
    return checkpoints.save(folder / "it.safetensors", state, card).read_bytes()


def _torch(zipped: bool) -> Callable[[Path], bytes]:
    def seed(_: Path) -> bytes:
        raw = io.BytesIO()
        state = {"model": _network().net.state_dict(), "epoch": 3, "args": {"lr": [0.1, None]}}
        torch.save(state, raw, _use_new_zipfile_serialization=zipped)
        return raw.getvalue()

    return seed


def _run(name: str) -> Callable[[Path], bytes]:
    def seed(folder: Path) -> bytes:
        run = RunFolder.create(folder, "cure-train", to_config(CureTrain()), "run")
        run.log({"epoch": 1, "step": 20, "train_worst": None, "lr": 0.1})
        run.log({"epoch": 2, "step": 40, "train_worst": 0.5, "lr": 0.1})
        return (run.path / name).read_bytes()

    return seed


def _run_state(folder: Path) -> bytes:
    tensors = {"params/w": torch.rand(3, 4, 2, 2), "step": torch.tensor(7)}
    meta = {"step": 7, "strides": {n: list(t.stride()) for n, t in tensors.items()}}
    return checkpoints.save_state(folder / "state.safetensors", tensors, meta).read_bytes()


def _arrays(compressed: bool) -> Callable[[Path], bytes]:
    def seed(_: Path) -> bytes:
        raw = io.BytesIO()
        x, y = np.arange(4 * 3 * 64, dtype=np.uint8).reshape(4, 8, 8, 3), np.array([0, 1, 0, 1])
        held = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
        (np.savez_compressed if compressed else np.savez)(
            raw, **held, class_names=np.array(["a", "b"])
        )
        return raw.getvalue()

    return seed


def _images(kind: str) -> Callable[[Path], bytes]:
    def seed(folder: Path) -> bytes:
        picture = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
        for half in ("train", "test"):
            for name in ("a", "b"):
                place = folder / "set" / half / name
                place.mkdir(parents=True)
                picture.save(place / f"1.{kind}")
        return (folder / "set" / "train" / "a" / f"1.{kind}").read_bytes()

    return seed


def _cifar(_: Path) -> bytes:
    x = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({"data": x, "labels": [0, 1], "filenames": ["a", "b"]}, protocol=3)


def _gzipped(_: Path) -> bytes:
    import gzip

    return gzip.compress(bytes(1000))


def _tarred(_: Path) -> bytes:
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        info = tarfile.TarInfo("it")
        info.size = 1000
        tar.addfile(info, io.BytesIO(bytes(1000)))
    return raw.getvalue()


SETTINGS = {"attacks": ["a"], "seed": 0}


def _outcome() -> tuple[torch.Tensor, torch.Tensor, Outcome]:
    numbers, y = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    return numbers, y, Outcome(torch.tensor([0, 1, -1, 1]), torch.rand(4, 3, 8, 8), torch.arange(4))


def _evaluation(folder: Path) -> bytes:
    numbers, y, outcome = _outcome()
    saving.keep(folder / "it.safetensors", SETTINGS, numbers, y, outcome, torch.ones_like(y))
    return (folder / "it.safetensors").read_bytes()


def _taken_up(folder: Path) -> object:
    numbers, y, outcome = _outcome()
    return saving.taken_up(folder / "it.safetensors", SETTINGS, numbers, y, outcome, 4)


def _in(folder: Path, name: str) -> Path:
    return folder / name


CASES: dict[str, Case] = {
    "checkpoint": Case(
        "it.safetensors", _checkpoint, lambda f: checkpoints.load(f / "it.safetensors")
    ),
    "changed checkpoint": Case(
        "it.safetensors", _checkpoint,
        lambda f: checkpoints.load(f / "it.safetensors", verify=False),
    ),
    "torch, zip": Case(
        "it.pt", _torch(True), lambda f: checkpoints.load(f / "it.pt", model="resnet20")
    ),
    "torch, older": Case(
        "it.pt", _torch(False), lambda f: checkpoints.load(f / "it.pt", model="resnet20")
    ),
    "config.json": Case(
        "run/config.json", _run("config.json"), lambda f: resumed(CureTrain(resume=f / "run"))
    ),
    "metrics.jsonl": Case(
        "run/metrics.jsonl", _run("metrics.jsonl"), lambda f: resumed(CureTrain(resume=f / "run"))
    ),
    "state": Case("state.safetensors", _run_state, checkpoints.load_state),
    "npz": Case("it.npz", _arrays(False), lambda f: data.load(str(f / "it.npz"), max_bytes=2**24)),
    "npz, compressed": Case(
        "it.npz", _arrays(True), lambda f: data.load(str(f / "it.npz"), max_bytes=2**24)
    ),
    "png": Case(
        "set/train/a/1.png", _images("png"), lambda f: data.load(str(f / "set"), max_bytes=2**24)
    ),
    "jpg": Case(
        "set/train/a/1.jpg", _images("jpg"), lambda f: data.load(str(f / "set"), max_bytes=2**24)
    ),
    "picture": Case(
        "set/train/a/1.png", _images("png"),
        lambda f: read_images((f / "set/train/a/1.png",), (3, 8, 8), 2**24),
    ),
    "cifar": Case(
        "it", _cifar, lambda f: (read_pickle("it", (f / "it").read_bytes()),
                                 _pickled_batch("it", (f / "it").read_bytes())),
    ),
    "gzip": Case("it.gz", _gzipped, lambda f: members(f, ["it"])),
    "tar": Case("it.tgz", _tarred, lambda f: members(f / "it.tgz", ["it"])),
    "evaluation": Case("it.safetensors", _evaluation, _taken_up),
}  # fmt: skip


# --- what they are given ------------------------------------------------------------------------


SPECIAL = [
    b"NaN", b"Infinity", b"-7", b"null", b"[]", b"{}", b'""', b"1e999", b"9" * 400, b"true",
    b"[" * 9999,
    b"\\ud800", b"\x1b[2J", b"\n", b"\0", b"\xff" * 8, b"\x7f" * 8,
    b"(", b"}", b"]", b"t", b"R", b"s.",
    struct.pack("<Q", 2**62), struct.pack("<I", 2**31), struct.pack(">I", 2**31 - 1),
]  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Change a few of the bytes: at random, cut, doubled, or by others that mean something."""
    found = bytearray(content)
    # Half of the changes are at the ends, where headers and directories are.
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        size = len(found) or 1
        ends = chance.choice([size, min(size, 600)])
        at = chance.randrange(ends)
        at = at if chance.random() < 0.7 else size - 1 - at
        how = chance.randrange(6)
        if how == 0 and found:
            found[at] = chance.randrange(256)
        elif how == 1:
            found[at : at + len(special)] = special if (special := chance.choice(SPECIAL)) else b""
        elif how == 2:
            found[at:at] = chance.choice(SPECIAL)
        elif how == 3:
            del found[at : at + chance.choice([1, 4, 50, size])]
        elif how == 4:
            piece = bytes(found[at : at + chance.choice([1, 8, 100])])
            found[at:at] = piece * chance.choice([1, 2, 50])
        elif how == 5 and found:
            found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def texts_mutated(content: bytes, chance: random.Random) -> bytes:
    """Change values of JSON, in a file of JSON or in the header of safetensors."""
    size = int.from_bytes(content[:8], "little")
    inside = content[:1] not in b"{" and 0 < size < len(content)
    text = content[8 : 8 + size] if inside else content
    try:
        found = json.loads(text)
    except ValueError:
        return mutated(content, chance)
    for _ in range(chance.choice([1, 1, 3])):
        found = _changed(found, chance)
    raw = json.dumps(found).encode()
    return struct.pack("<Q", len(raw)) + raw + content[8 + size :] if inside else raw


VALUES = [
    None, True, -7, 0, 1, 10**12, 2**63, 10**400, 0.5, float("nan"), 1e308, "", "x", "\x1b[2J\n",
    "\ud800", "x" * 10**5, [], {}, [[]], [1] * 1000, {"a": {}}, "evil:make", "/etc/passwd", "../x",
]  # fmt: skip


def _changed(value: object, chance: random.Random) -> object:
    if isinstance(value, str) and value[:1] == "{":  # JSON within JSON, as cards are
        try:
            return json.dumps(_changed(json.loads(value), chance))
        except ValueError:
            return value
    if isinstance(value, dict) and value and chance.random() < 0.95:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return value | {name: _changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(VALUES)


@cache
def _seeded(name: str) -> tuple[Path, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    return folder, CASES[name].seed(folder)


def read(name: str, content: bytes) -> str:
    """Give a reader the bytes; say "read" or "refused", and let every other exception out."""
    folder, _ = _seeded(name)
    (folder / CASES[name].file).write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CASES[name].call(folder)
    except FuncrobustError as error:
        return "refused" if len(str(error)) < 3000 else f"refused at length: {str(error)[:200]}"
    return "read"


def tried(name: str, seed: int) -> str:
    """Give a reader what the seed makes of a file that it reads."""
    chance = random.Random(seed)
    content = _seeded(name)[1]
    change = texts_mutated if chance.random() < 0.4 else mutated
    return read(name, change(content, chance))


def limit_memory(extra: int) -> None:
    """Let this process have so many more bytes than it has now, where the system can say so."""
    if sys.platform.startswith("linux"):
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))


def clean_up() -> None:
    """Remove the folders."""
    for name in CASES:
        shutil.rmtree(_seeded(name)[0], ignore_errors=True)


def main() -> int:
    """Go through all readers in turn until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gib", type=float, default=2.0, help="memory beyond what is there")
    given = parser.parse_args()
    for name in CASES:
        assert read(name, _seeded(name)[1]) == "read", f"{name}: what it reads, it refuses"
    limit_memory(int(given.gib * 2**30))
    counts: dict[str, Counter[str]] = {name: Counter() for name in CASES}
    slowest, end, seed = (0.0, "", 0), time.monotonic() + given.seconds, given.seed
    while time.monotonic() < end:
        for name in CASES:
            began = time.monotonic()
            try:
                counts[name][tried(name, seed)] += 1
            except Exception:
                counts[name]["BROKEN"] += 1
                print(f"{name}, seed {seed}:\n{traceback.format_exc(limit=-4)}", flush=True)
            slowest = max(slowest, (time.monotonic() - began, name, seed))
        seed += 1
    for name, found in counts.items():
        print(f"{name:20} {dict(found)}")
    print(f"slowest {slowest[0]:.2f} s: {slowest[1]}, seed {slowest[2]}")
    clean_up()
    return int(any(found.keys() - {"read", "refused"} for found in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
