"""Small image sets in every form that they are published in, and sources that give them."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from funcrobust import data
from funcrobust.data import sources

ROWS = 3  # images a batch file in the synthetic CIFAR-10


def use(monkeypatch, name, **changes):
    """Change how the set ``name`` is obtained."""
    module = importlib.import_module(f"funcrobust.data.sets.{name}")
    monkeypatch.setattr(module, "SET", replace(module.SET, **changes))


def batch_files(arrays):
    """(name, images, labels) of the six files."""
    for number in range(5):
        part = slice(number * ROWS, (number + 1) * ROWS)
        yield f"data_batch_{number + 1}", arrays.x_train[part], arrays.y_train[part]
    yield "test_batch", arrays.x_test, arrays.y_test


def rows_of(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def text(value):
    return b"U" + bytes([len(value)]) + value.encode()


def python2_pickle(images, labels):
    """The opcodes that Python 2's cPickle wrote for the published batches."""
    rows = rows_of(images)
    shape = b"".join(b"M" + struct.pack("<H", size) for size in rows.shape) + b"\x86"
    byte_type = (
        b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        b"(K\x01" + shape + byte_type + b"\x89T" + struct.pack("<I", rows.size) + rows.tobytes()
    ) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text("labels") + numbers + b"u."


def as_python2(arrays):
    return {name: python2_pickle(x, y) for name, x, y in batch_files(arrays)}


def as_python3(arrays):
    return {
        name: pickle.dumps({"data": rows_of(x), "labels": y.tolist()}, protocol=4)
        for name, x, y in batch_files(arrays)
    }


def as_binary(arrays):
    return {
        f"{name}.bin": np.concatenate([y[:, None], rows_of(x)], axis=1).tobytes()
        for name, x, y in batch_files(arrays)
    }


def as_sheets(arrays):
    files = {f"{name}.png": png(x.reshape(len(x), 1024, 3)) for name, x, _ in batch_files(arrays)}
    files["train_lables.json"] = json.dumps(arrays.y_train.tolist()).encode()
    files["test_lables.json"] = json.dumps(arrays.y_test.tolist()).encode()
    return files


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_tar(path, files, inside="package"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def assert_holds(dataset, arrays):
    assert torch.equal(dataset.x_train, torch.from_numpy(arrays.x_train).permute(0, 3, 1, 2))
    assert torch.equal(dataset.x_test, torch.from_numpy(arrays.x_test).permute(0, 3, 1, 2))
    assert dataset.y_train.tolist() == arrays.y_train.tolist()
    assert dataset.y_test.tolist() == arrays.y_test.tolist()
    assert dataset.x_train.is_contiguous()
    assert dataset.y_train.dtype == torch.int64


def offline(name="cifar10", **arguments):
    return data.load(name, download=False, **arguments)


def remote(phrase, arrays, calls=None):
    """A source that gives ``arrays``, or raises it."""

    def fetch(folder, progress):
        assert folder.is_dir()
        if calls is not None:
            calls.append(phrase)
        if isinstance(arrays, Exception):
            raise arrays
        return arrays

    return sources.Remote(phrase, fetch)
