"""From a name to a dataset."""

from __future__ import annotations

import os
from pathlib import Path

from funcrobust.core.errors import FuncrobustError, did_you_mean
from funcrobust.data.cache import default_cache
from funcrobust.data.dataset import Dataset, dataset_from
from funcrobust.data.decoding import LIMIT
from funcrobust.data.folders import read_image_folder
from funcrobust.data.npz import read_npz
from funcrobust.data.progress import Progress, silent
from funcrobust.data.sets import find, names
from funcrobust.data.sources import DataUnavailable, Embedded, obtain
from funcrobust.data.streaming.opening import Found, Streaming, to_stream
from funcrobust.reading import user_path


def load(
    name: str,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    download: bool = True,
    progress: Progress = silent,
    max_bytes: int = LIMIT,
    streaming: Streaming = Streaming(),
) -> Dataset:
    """Return the set ``name``: one of ``names()``, a ``.npz`` file or a folder of images.

    A folder has ``train/<class>/`` and ``test/<class>/`` (or ``val``), or WebDataset's shards
    ``train-*.tar`` and ``val-*.tar`` (or ``test``); ``streaming`` says whether and how its images
    are decoded only when they are wanted.

    A published set is looked for in ``cache`` (``default_cache()``), then in ``folder`` (a local
    copy in a layout it is published in, or its archive), then, unless ``download`` is False, at
    its remotes; it is checked against published checksums wherever it comes from, so ``folder``
    can only change where the bits come from, never which. An embedded set, a file and a folder of
    one's own need none of this, and refuse a ``folder``. What would be more than ``max_bytes`` when
    it is decoded is refused of a file, and streamed of a folder.

    Raises:
        DataUnavailable: no source is in reach; each is listed with the reason.
        FuncrobustError: the name is unknown, a file is unreadable or holds bad values, the
            cache cannot be written, or ``streaming`` says of a set in memory what it cannot heed.
    """
    if name not in names():
        return _own(name, folder, max_bytes, streaming)
    _refuse_to_stream(name, streaming)
    known = find(name)
    if isinstance(known, Embedded):
        _refuse(folder, f"{name} comes with {known.library}")
        arrays, source = known.read(), known.library
    else:
        if folder is not None and not os.path.exists(user_path(folder)):  # noqa: PTH110
            raise DataUnavailable(f"no such folder: {folder}")
        where = default_cache() if cache is None else user_path(cache)
        arrays, source = obtain(
            name, known, folder=folder, cache=where, download=download, progress=progress
        )
    return dataset_from(name, arrays, source, mirrored=known.mirrored)


def _own(name: str, folder: Path | None, max_bytes: int, streaming: Streaming) -> Dataset:
    """A user's own set, by the path of its file or folder."""
    path = user_path(name)
    if path.suffix == ".npz":
        _refuse(folder, f"{name} is itself a file")
        _refuse_to_stream(name, streaming)
        return dataset_from(name, read_npz(path, max_bytes), f"file {path}")
    if os.path.isdir(path):  # noqa: PTH112  (Path's raises on NUL and long names)
        _refuse(folder, f"{name} is itself a folder")
        if (found := to_stream(path, streaming, max_bytes)) is not None:
            return _streamed(name, path, found, streaming)
        _refuse_to_stream(name, streaming)
        return dataset_from(name, read_image_folder(path, max_bytes), f"folder {path}")
    raise FuncrobustError(_unknown(name))


def _streamed(name: str, path: Path, found: Found, streaming: Streaming) -> Dataset:
    (x_train, y_train), (x_test, y_test) = found.streamed(streaming)
    return Dataset(
        name, x_train, y_train, x_test, y_test, found.class_names, f"streamed from folder {path}"
    )


def _refuse_to_stream(name: str, streaming: Streaming) -> None:
    if streaming.wanted:
        raise FuncrobustError(
            f"{name} is held in memory: --stream is for a folder of images or of .tar shards"
        )
    for flag, value in (("--image-size", streaming.size), ("--workers", streaming.workers)):
        if value is not None:
            raise FuncrobustError(
                f"{flag} does nothing here: {name} is held in memory; it needs --stream"
            )


def _refuse(folder: Path | None, why: str) -> None:
    if folder is not None:
        raise FuncrobustError(
            f"{why}, so nothing is read from {folder}: leave --data-dir (in Python folder=) out"
        )


def _unknown(name: str) -> str:
    if os.sep in name:
        return f"no such folder: {name}"
    return (
        f"unknown dataset {name!r}{did_you_mean(name, names())}: choose one of "
        f"{', '.join(names())}, or a path to a .npz file or a folder of images"
    )
