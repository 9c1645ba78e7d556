"""CIFAR-100 with its fine labels, from the address and checksums that torchvision keeps."""

from __future__ import annotations

import hashlib
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
from funcrobust.data.pickles import planes, read_pickle
from funcrobust.data.progress import Progress
from funcrobust.data.sources import Published, Remote


def read_folder(folder: Path) -> Arrays:
    """Decode the pickles, in a folder or the published archive, after an MD5 check of each."""
    source = published.CIFAR100
    layout = Layout("pickles", tuple(_md5()), _decode)
    return read_layout("CIFAR-100", folder, (layout,), (source.base_folder, source.filename))


def _md5() -> dict[str, str]:
    source = published.CIFAR100
    meta = (source.meta["filename"], source.meta["md5"])
    return dict([*source.train_list, *source.test_list, meta])


def _decode(files: Files) -> Arrays:
    pickles = {name: _checked(name, files[name], md5) for name, md5 in _md5().items()}

    def split(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return planes(pickles[name]["data"]), np.asarray(pickles[name]["fine_labels"], np.uint8)

    with reading("CIFAR-100"):
        return Arrays(*split("train"), *split("test"), tuple(pickles["meta"]["fine_label_names"]))


def _checked(name: str, content: bytes, md5: str) -> dict[str, Any]:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise FuncrobustError(f"{name} of CIFAR-100 fails its MD5 check")
    return read_pickle(name, content)


def _fetch(folder: Path, progress: Progress) -> Arrays:
    source = published.CIFAR100
    return read_folder(download(source.url, folder / source.filename, source.tgz_md5, progress))


SET = Published(read_folder, (Remote("official archive", _fetch),))
