"""From a name to a dataset."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from funcrobust.core.errors import FuncrobustError
from funcrobust.data import cifar10, vision
from funcrobust.data.cache import default_cache
from funcrobust.data.dataset import Dataset, dataset_from
from funcrobust.data.digits import read_digits
from funcrobust.data.folders import read_image_folder
from funcrobust.data.npz import read_npz
from funcrobust.data.progress import Progress, silent
from funcrobust.data.sources import obtain

_RECIPES = {recipe.name: recipe for recipe in (cifar10.RECIPE, *vision.RECIPES)}


def names() -> tuple[str, ...]:
    """Return the names of the known sets."""
    return tuple(sorted([*_RECIPES, "digits"]))


def load(
    name: str,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    download: bool = True,
    progress: Progress = silent,
) -> Dataset:
    """Return the set ``name``: one of ``names()``, a ``.npz`` file or a folder of images.

    A published set is looked for in ``cache`` (``default_cache()``), then in ``folder`` (a local
    copy in a layout it is published in, or its archive), then, unless ``download`` is False, at
    its remotes; it is checked against published checksums wherever it comes from, so ``folder``
    can only change where the bits come from, never which. ``digits``, files and folders need
    none of this.

    Raises:
        DataUnavailable: no source is in reach; each is listed with the reason.
        FuncrobustError: the name is unknown, a file is unreadable or holds bad values, or the
            cache cannot be written.
    """
    if name == "digits":
        return dataset_from(name, read_digits(), "scikit-learn")
    if name in _RECIPES:
        where = default_cache() if cache is None else cache.expanduser()
        arrays, source = obtain(
            _RECIPES[name], folder=folder, cache=where, download=download, progress=progress
        )
        return dataset_from(name, arrays, source)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return dataset_from(name, read_npz(path), f"file {path}")
    if path.is_dir():
        return dataset_from(name, read_image_folder(path), f"folder {path}")
    raise FuncrobustError(_unknown(name))


def _unknown(name: str) -> str:
    if os.sep in name:
        return f"no such folder: {name}"
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    question = f" Did you mean {close[0]}?" if close else ""
    return (
        f"unknown dataset {name!r}.{question} Known: {', '.join(names())}, "
        "or a path to a .npz file or a folder of images"
    )
