"""CIFAR-10-C's own arrays: rows by severity, and folders that hold something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from funcrobust.core.errors import FuncrobustError
from funcrobust.data.cifar_c import published, published_folder, require_published

LABELS = torch.tensor([3, 0, 1, 2, 2, 9])


@pytest.fixture
def folder(tmp_path):
    """Six test images, five times over; a pixel says which image and severity it is."""
    rows = np.zeros((30, 32, 32, 3), np.uint8)
    rows[..., 1] = np.arange(30)[:, None, None]
    rows[:, 4, 7, 2] = 200
    np.save(tmp_path / "fog.npy", rows)
    np.save(tmp_path / "labels.npy", np.tile(LABELS.numpy(), 5).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_rows_of_a_severity(folder, severity):
    index = torch.tensor([1, 5])
    x = published(folder, "fog", severity, LABELS, index)
    assert (x.shape, x.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert x[:, 1].flatten(1).unique(dim=1).T.tolist() == [(6 * (severity - 1) + index).tolist()]
    assert (x[:, 2, 4, 7] == 200).all()


def test_where_the_arrays_are(folder, tmp_path_factory):
    assert published_folder(None) is None
    assert published_folder(folder) == folder
    above = tmp_path_factory.mktemp("above")
    assert published_folder(above) is None
    with pytest.raises(FuncrobustError, match="no such folder"):
        published_folder(above / "nowhere")
    folder.rename(above / "CIFAR-10-C")
    assert published_folder(above) == above / "CIFAR-10-C"


def pickled(folder):
    np.save(folder / "fog.npy", np.array([{}], object), allow_pickle=True)


def short(folder):
    np.save(folder / "fog.npy", np.zeros((24, 32, 32, 3), np.uint8))


def floats(folder):
    np.save(folder / "fog.npy", np.zeros((30, 32, 32, 3), np.float32))


def others(folder):
    np.save(folder / "labels.npy", np.zeros(30, np.uint8))


def torn(folder):
    path = folder / "fog.npy"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), r"cannot read .*fog\.npy: .*No such file"),
        (lambda folder: (folder / "labels.npy").unlink(), r"cannot read .*labels\.npy: .*No such"),
        (pickled, r"cannot read .*fog\.npy"),
        (torn, r"cannot read .*fog\.npy"),
        (short, r"must be uint8 of 30x32x32x3, 5 times the 6 test images, got uint8 of 24x32x32x3"),
        (floats, "got float32 of 30x32x32x3"),
        (others, "belong to another dataset"),
    ],
)
def test_what_is_not_cifar_c_is_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(FuncrobustError, match=said):
        published(folder, "fog", 1, LABELS, torch.tensor([0]))
    with pytest.raises(FuncrobustError, match=said):
        require_published(folder, ["fog"], LABELS)


def test_every_file_is_asked_for(folder):
    require_published(folder, ["fog"], LABELS)
    with pytest.raises(FuncrobustError, match=r"snow\.npy"):
        require_published(folder, ["fog", "snow"], LABELS)
