"""A small image set of ImageNet's layout, made anew: sizes vary, some are gray, some have alpha."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = tuple(f"n{number:02d}" for number in range(20))


def make_folder(root: Path, train: int = 200, val: int = 40) -> Path:
    """Write ``train/CLASS/*.JPEG`` and ``val/CLASS/*``: a gray one and a PNG with alpha in ten."""
    draw = np.random.default_rng(0)
    for half, count in (("train", train), ("val", val)):
        for i in range(count):
            folder = root / half / CLASSES[i % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            width, height = (int(side) for side in draw.integers(40, 120, 2))
            coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
            image = coarse.resize((width, height), Image.Resampling.BICUBIC)
            if i % 10 == 3:
                image.convert("L").save(folder / f"{i:04d}.JPEG")
            elif i % 10 == 7:
                image.putalpha(100)
                image.save(folder / f"{i:04d}.png")
            else:
                image.save(folder / f"{i:04d}.JPEG", quality=90)
    return root


def make_shards(folder: Path, root: Path, per_shard: int = 70) -> Path:
    """Write the same images, in the same order, as ``train-000000.tar`` and so on."""
    root.mkdir(parents=True, exist_ok=True)
    for half in ("train", "val"):
        paths = sorted((folder / half).glob("*/*"))
        for first in range(0, len(paths), per_shard):
            with tarfile.open(root / f"{half}-{first // per_shard:06d}.tar", "w") as tar:
                for path in paths[first : first + per_shard]:
                    kind = path.suffix.lower().replace("jpeg", "jpg")
                    label = root / "label"
                    label.write_text(str(CLASSES.index(path.parent.name)))
                    tar.add(path, f"{path.parent.name}_{path.stem}{kind}")
                    tar.add(label, f"{path.parent.name}_{path.stem}.cls")
                    label.unlink()
    return root
