"""CIFAR-10 in parts, for a machine that reaches no registry: lossless WebP, 99 MB for 184.

    python benchmarks/carry.py pack FOLDER --parts 2    # here: FOLDER/1 and FOLDER/2, of one size
    python benchmarks/carry.py unpack FOLDER            # there, once all the parts lie in it

Packing takes two and a half minutes of a core, unpacking seconds. What is unpacked is checked
against the published SHA-256, and lies where `funcrobust data` would have put it.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from funcrobust import data
from funcrobust.data.cache import cache_file, default_cache, write_cache
from funcrobust.data.dataset import Arrays

COLUMN = 500
"""Images one above the other in a file: WebP ends at 16383 pixels."""
LABELS = "labels.json"


def pack(arrays: Arrays, folder: Path, parts: int) -> None:
    """Write RGB images (N, H, W, 3) as columns, spread over so many folders, and the labels."""
    jobs = [(half, at) for half in ("x_test", "x_train") for at in columns(getattr(arrays, half))]
    for number in range(1, parts + 1):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)

    def write(job: tuple[int, tuple[str, int]]) -> None:
        number, (half, at) = job
        images = getattr(arrays, half)[at : at + COLUMN]
        column = Image.fromarray(images.reshape(-1, *images.shape[2:]))
        path = folder / str(1 + number * parts // len(jobs)) / f"{half}-{at:06d}.webp"
        column.save(path, "webp", lossless=True, quality=100, method=4)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, enumerate(jobs)))
    labels = {name: getattr(arrays, name).tolist() for name in ("y_train", "y_test")}
    text = json.dumps(labels | {"class_names": arrays.class_names})
    (folder / "1" / LABELS).write_text(text)


def columns(images: NDArray[np.uint8]) -> range:
    return range(0, len(images), COLUMN)


def unpack(folder: Path) -> Arrays:
    """Read back what `pack` wrote, wherever under the folder its parts lie."""
    labels = json.loads(next(folder.rglob(LABELS)).read_text())

    def read(path: Path) -> NDArray[np.uint8]:
        column = np.asarray(Image.open(path).convert("RGB"))
        return column.reshape(-1, column.shape[1], column.shape[1], 3)

    def half(name: str) -> NDArray[np.uint8]:
        files = sorted(folder.rglob(f"{name}-*.webp"), key=lambda path: path.name)
        with ThreadPoolExecutor() as pool:
            return np.concatenate(list(pool.map(read, files)))

    label = partial(np.asarray, dtype=np.uint8)
    return Arrays(
        half("x_train"), label(labels["y_train"]), half("x_test"), label(labels["y_test"]),
        tuple(labels["class_names"]),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    args = parser.parse_args()
    if args.what == "unpack":
        cache = default_cache()
        cache.mkdir(parents=True, exist_ok=True)
        write_cache(cache_file(cache, "cifar10"), unpack(args.folder), str(args.folder))
        print(data.load("cifar10", download=False))  # which checks it
        return
    known = data.load("cifar10")
    x_train, x_test = (x.permute(0, 2, 3, 1).numpy() for x in known.in_memory())
    y_train, y_test = known.y_train.numpy(), known.y_test.numpy()
    pack(Arrays(x_train, y_train, x_test, y_test, known.class_names), args.folder, args.parts)
    for number in range(1, args.parts + 1):
        files = (args.folder / str(number)).iterdir()
        print(f"{args.folder / str(number)}: {sum(f.stat().st_size for f in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
