"""SVHN's cropped digits, from the addresses and checksums that torchvision keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import datasets as published

from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import reading
from funcrobust.data.download import download
from funcrobust.data.progress import Progress
from funcrobust.data.sources import Published, Remote


def read_folder(folder: Path) -> Arrays:
    """Read ``train_32x32.mat`` and ``test_32x32.mat``."""
    with reading(folder):
        # torchvision checks the MD5 of each file before it reads it
        train, test = (published.SVHN(folder, split=half) for half in ("train", "test"))
    return Arrays(
        train.data.transpose(0, 2, 3, 1),
        train.labels.astype(np.uint8),
        test.data.transpose(0, 2, 3, 1),
        test.labels.astype(np.uint8),
        tuple("0123456789"),
    )


def _fetch(folder: Path, progress: Progress) -> Arrays:
    for half in ("train", "test"):
        url, filename, md5 = published.SVHN.split_list[half]
        download(url, folder / filename, md5, progress)
    return read_folder(folder)


SET = Published(read_folder, (Remote("official files", _fetch),), mirrored=False)
