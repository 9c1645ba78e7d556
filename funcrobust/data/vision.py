"""CIFAR-100, SVHN and Fashion-MNIST, from the addresses and checksums that torchvision keeps."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets as published

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.archives import members, places, reading
from funcrobust.data.cifar10 import planes
from funcrobust.data.dataset import Arrays
from funcrobust.data.download import download
from funcrobust.data.pickles import read_pickle
from funcrobust.data.progress import Progress
from funcrobust.data.sources import Recipe, Remote

# --- CIFAR-100 ----------------------------------------------------------------------------------


def read_cifar100(folder: Path) -> Arrays:
    """Decode CIFAR-100 (fine labels) from its pickles, in a folder or the published archive."""
    source = published.CIFAR100
    meta = (source.meta["filename"], source.meta["md5"])
    md5 = dict([*source.train_list, *source.test_list, meta])
    for place in places(folder, (source.base_folder, source.filename)):
        files = members(place, md5)
        if len(files) == len(md5):
            pickles = {name: _checked_pickle(name, files[name], md5[name]) for name in md5}
            return _cifar100(pickles)
    raise FuncrobustError(f"{folder} holds no CIFAR-100 (the files {', '.join(md5)})")


def _checked_pickle(name: str, content: bytes, md5: str) -> dict[str, Any]:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise FuncrobustError(f"{name} of CIFAR-100 fails its MD5 check")
    return read_pickle(name, content)


def _cifar100(pickles: dict[str, dict[str, Any]]) -> Arrays:
    def split(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return planes(pickles[name]["data"]), np.asarray(pickles[name]["fine_labels"], np.uint8)

    with reading("CIFAR-100"):
        return Arrays(*split("train"), *split("test"), tuple(pickles["meta"]["fine_label_names"]))


def _fetch_cifar100(folder: Path, progress: Progress) -> Arrays:
    source = published.CIFAR100
    return read_cifar100(download(source.url, folder / source.filename, source.tgz_md5, progress))


# --- SVHN ---------------------------------------------------------------------------------------


def read_svhn(folder: Path) -> Arrays:
    """Read SVHN's cropped digits from ``train_32x32.mat`` and ``test_32x32.mat``."""
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


def _fetch_svhn(folder: Path, progress: Progress) -> Arrays:
    for half in ("train", "test"):
        url, filename, md5 = published.SVHN.split_list[half]
        download(url, folder / filename, md5, progress)
    return read_svhn(folder)


# --- Fashion-MNIST ------------------------------------------------------------------------------

FASHION_DIGESTS = {
    # of the files that torchvision's MD5s name: the Debian package's files, given back the gzip
    # headers of the official ones (file name and time), have exactly those MD5s
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_fashion_mnist(folder: Path) -> Arrays:
    """Read Fashion-MNIST from its four IDX files, gzipped or not."""
    wanted = [*_IDX_FILES, *(f"{name}.gz" for name in _IDX_FILES)]
    for place in places(folder, ("FashionMNIST/raw", "raw", "fashion-mnist")):
        files = members(place, wanted) if place.is_dir() else {}
        if all(name in files or f"{name}.gz" in files for name in _IDX_FILES):
            x_train, y_train, x_test, y_test = (_idx(name, files) for name in _IDX_FILES)
            names = tuple(published.FashionMNIST.classes)
            return Arrays(x_train[..., None], y_train, x_test[..., None], y_test, names)
    raise FuncrobustError(
        f"{folder} does not hold Fashion-MNIST's files {', '.join(_IDX_FILES)} (or .gz)"
    )


def _idx(name: str, files: dict[str, bytes]) -> NDArray[Any]:
    """Decode an IDX file of bytes: 0, 0, 8 (uint8), rank, sizes as big-endian int32, data."""
    with reading(name):
        content = files[name] if name in files else gzip.decompress(files[f"{name}.gz"])
        if content[:3] != b"\0\0\x08":
            raise FuncrobustError(f"{name} is not an IDX file of bytes")
        rank = content[3]
        shape = np.frombuffer(content, ">i4", count=rank, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fetch_fashion_mnist(folder: Path, progress: Progress) -> Arrays:
    source = published.FashionMNIST
    for filename, md5 in source.resources:
        download(f"{source.mirrors[0]}{filename}", folder / filename, md5, progress)
    return read_fashion_mnist(folder)


RECIPES = (
    Recipe("cifar100", read_cifar100, (Remote("official archive", _fetch_cifar100),)),
    Recipe(
        "fashion_mnist",
        read_fashion_mnist,
        (Remote("official files", _fetch_fashion_mnist),),
        digests=FASHION_DIGESTS,
        system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
        advice="Install Debian's package dataset-fashion-mnist, or name a folder with its files",
    ),
    Recipe("svhn", read_svhn, (Remote("official files", _fetch_svhn),)),
)
