"""Fashion-MNIST, from the addresses and checksums that torchvision keeps, or Debian's package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets as published

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.archives import Files, Layout, read_layout
from funcrobust.data.arrays import Arrays
from funcrobust.data.decoding import reading
from funcrobust.data.download import download
from funcrobust.data.progress import Progress
from funcrobust.data.sources import Published, Remote

DIGESTS = {
    # of the files that torchvision's MD5s name: the Debian package's files, given back the gzip
    # headers of the official ones (file name and time), have exactly those MD5s
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_folder(folder: Path) -> Arrays:
    """Read the four IDX files, gzipped or not."""
    layout = Layout("IDX files, gzipped or not", IDX_FILES, _decode)
    inside = ("FashionMNIST/raw", "raw", "fashion-mnist")
    return read_layout("Fashion-MNIST", folder, (layout,), inside)


def _decode(files: Files) -> Arrays:
    x_train, y_train, x_test, y_test = (_idx(name, files[name]) for name in IDX_FILES)
    names = tuple(published.FashionMNIST.classes)
    return Arrays(x_train[..., None], y_train, x_test[..., None], y_test, names)


def _idx(name: str, content: bytes) -> NDArray[Any]:
    """Decode an IDX file of bytes: 0, 0, 8 (uint8), rank, sizes as big-endian int32, data."""
    with reading(name):
        if content[:3] != b"\0\0\x08":
            raise FuncrobustError(f"{name} is not an IDX file of bytes")
        rank = content[3]
        shape = np.frombuffer(content, ">i4", count=rank, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fetch(folder: Path, progress: Progress) -> Arrays:
    source = published.FashionMNIST
    for filename, md5 in source.resources:
        download(f"{source.mirrors[0]}{filename}", folder / filename, md5, progress)
    return read_folder(folder)


SET = Published(
    read_folder,
    (Remote("official files", _fetch),),
    digests=DIGESTS,
    system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
    advice="Install Debian's package dataset-fashion-mnist, or name a folder with its files",
)
