"""The known sets, found by their files: CIFAR-100, SVHN, Fashion-MNIST, digits, and a new one."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from published_sets import as_folder, assert_holds, offline, rows_of, use
from scipy.io import savemat
from torchvision import datasets as published

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import sets
from funcrobust.data.cache import digests
from funcrobust.data.dataset import Arrays
from funcrobust.data.sets import fashion_mnist


def test_a_new_set_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "toy_shapes.py").write_text(
        "import numpy as np\n"
        "from funcrobust.data.dataset import Arrays\n"
        "from funcrobust.data.sources import Embedded\n"
        "def read():\n"
        "    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2\n"
        "    return Arrays(x, y, x, y, ('circle', 'square'))\n"
        "SET = Embedded(read, library='numpy', mirrored=False)\n"
    )
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    assert "toy_shapes" in data.names()
    toy = data.load("toy_shapes")
    assert (toy.source, toy.mirrored, toy.class_names) == ("numpy", False, ("circle", "square"))


def test_every_file_of_the_folder_is_a_set():
    assert data.names() == ("cifar10", "cifar100", "digits", "fashion_mnist", "svhn")
    mirrored = {name: sets.find(name).mirrored for name in data.names()}
    assert mirrored == {name: name not in ("digits", "svhn") for name in data.names()}


def test_unknown_names_list_the_known_and_suggest_the_close():
    with pytest.raises(
        FuncrobustError, match=r"'CIFAR-10' \(did you mean 'cifar10'\?\).*digits, fa"
    ):
        data.load("CIFAR-10")
    with pytest.raises(FuncrobustError, match=r"unknown dataset 'zzz': choose one of cifar10, "):
        data.load("zzz")
    with pytest.raises(FuncrobustError, match=r"no such folder: \./no/where"):
        data.load("./no/where")


def test_a_folder_for_a_set_that_reads_none_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz")
    for name, why in [
        ("digits", "comes with scikit-learn"),
        (str(tmp_path / "a.npz"), "is itself a file"),
        (str(tmp_path), "is itself a folder"),
    ]:
        with pytest.raises(FuncrobustError, match=f"{why}.*leave --data-dir") as caught:
            data.load(name, folder=tmp_path / "nope")
        assert "\n" not in str(caught.value)


@pytest.fixture
def fashion(monkeypatch):
    rng = np.random.default_rng(1)
    arrays = Arrays(
        rng.integers(0, 256, (20, 28, 28, 1), np.uint8), rng.integers(0, 10, 20, np.uint8),
        rng.integers(0, 256, (6, 28, 28, 1), np.uint8), rng.integers(0, 10, 6, np.uint8),
        tuple(published.FashionMNIST.classes),
    )  # fmt: skip
    use(monkeypatch, "fashion_mnist", digests=digests(arrays), system_folders=())
    return arrays


def idx_files(arrays):
    def idx(x):
        return b"\0\0\x08" + bytes([x.ndim]) + struct.pack(f">{x.ndim}i", *x.shape) + x.tobytes()

    values = (arrays.x_train[..., 0], arrays.y_train, arrays.x_test[..., 0], arrays.y_test)
    return {name: idx(x) for name, x in zip(fashion_mnist.IDX_FILES, values, strict=True)}


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_from_idx_files(fashion, tmp_path, inside, packed):
    files = idx_files(fashion)
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    as_folder(tmp_path / inside, files)
    assert_holds(offline("fashion_mnist", folder=tmp_path, cache=tmp_path / "c"), fashion)
    assert offline("fashion_mnist", cache=tmp_path / "c").source == "cache"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", [b"", b"\0\0\x0b\1", b"\0\0\x08\3\0\0\0\5", b"text"])
def test_damaged_idx_is_named(fashion, tmp_path, content):
    name = "train-images-idx3-ubyte"
    as_folder(tmp_path, idx_files(fashion) | {name: content})
    with pytest.raises(data.DataUnavailable, match=name):
        offline("fashion_mnist", folder=tmp_path, cache=tmp_path / "c")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cifar100_from_its_pickles(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    names = [f"class {i}" for i in range(100)]
    x, y = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), [0, 99, 5, 6, 7]
    half = pickle.dumps({"data": rows_of(x), "fine_labels": y}, protocol=4)
    files = {"train": half, "test": half, "meta": pickle.dumps({"fine_label_names": names})}
    as_folder(tmp_path / "cifar-100-python", files)
    with pytest.raises(data.DataUnavailable, match="fails its MD5 check"):
        offline("cifar100", folder=tmp_path, cache=tmp_path / "c")
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(published.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(published.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setitem(published.CIFAR100.meta, "md5", md5["meta"])
    dataset = offline("cifar100", folder=tmp_path, cache=tmp_path / "c")
    assert_holds(dataset, Arrays(x, np.array(y), x, np.array(y), tuple(names)))
    assert dataset.class_names == tuple(names)
    assert offline("cifar100", cache=tmp_path / "c").class_names == tuple(names)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_svhn_from_its_files(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (4, 32, 32, 3), np.uint8), np.array([1, 10, 9, 2], np.uint8)
    lists = {}
    for half in ("train", "test"):
        path = tmp_path / f"{half}_32x32.mat"
        savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]})
        lists[half] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    with pytest.raises(data.DataUnavailable, match="not found or corrupted"):
        offline("svhn", folder=tmp_path, cache=tmp_path / "c")
    monkeypatch.setattr(published.SVHN, "split_list", lists)
    expected = Arrays(x, y % 10, x, y % 10, ())
    assert_holds(offline("svhn", folder=tmp_path, cache=tmp_path / "c"), expected)
    assert_holds(offline("svhn", cache=tmp_path / "c"), expected)


def test_digits():
    one, two = data.load("digits"), data.load("digits")
    assert one.x_train.shape == (1400, 1, 8, 8)
    assert one.x_test.shape == (397, 1, 8, 8)
    assert one.x_train.dtype == torch.uint8
    assert (one.x_train.min(), one.x_train.max()) == (0, 255)
    assert one.image_shape == (1, 8, 8)
    assert one.num_classes == 10
    assert torch.equal(one.x_train, two.x_train)
    assert torch.equal(one.y_test, two.y_test)
    counts = torch.bincount(one.y_test)
    assert counts.min() >= 38
    assert counts.max() <= 41
    seen = {image.numpy().tobytes() for image in one.x_train}
    assert sum(image.numpy().tobytes() in seen for image in one.x_test) == 0
