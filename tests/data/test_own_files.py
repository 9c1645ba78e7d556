"""Sets of one's own: ``.npz`` files and folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from funcrobust import data
from funcrobust.core.errors import FuncrobustError


def small(n=6, shape=(8, 10, 3), dtype=np.uint8):
    rng = np.random.default_rng(n)
    high = 256 if dtype == np.uint8 else 1
    x = rng.integers(0, high, (n, *shape), dtype) if high > 1 else rng.random((n, *shape), dtype)
    return x, np.arange(n) % 3


def save(path, **changes):
    x, y = small()
    entries = {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]} | changes
    np.savez(path, **{key: value for key, value in entries.items() if value is not None})
    return str(path)


def test_npz_layouts_give_the_same_set(tmp_path):
    x, _ = small()
    last = data.load(save(tmp_path / "last.npz"))
    nchw = x.transpose(0, 3, 1, 2)
    first = data.load(save(tmp_path / "first.npz", x_train=nchw, x_test=nchw[:3]))
    assert last.image_shape == (3, 8, 10)
    assert torch.equal(last.x_train, first.x_train)
    assert torch.equal(last.x_train, torch.from_numpy(nchw))
    assert first.class_names == ("0", "1", "2")
    assert first.x_train.dtype == torch.uint8


def test_npz_gray_column_labels_and_class_names(tmp_path):
    x, y = small(shape=(8, 10))
    names = np.array(["ant", "bee", "cat", "dog"])
    path = save(tmp_path / "a.npz", x_train=x, x_test=x[:3], y_train=y[:, None], class_names=names)
    dataset = data.load(path)
    assert dataset.image_shape == (1, 8, 10)
    assert dataset.class_names == ("ant", "bee", "cat", "dog")
    assert dataset.y_train.tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
def test_npz_floats(tmp_path, dtype):
    x = small(dtype=np.float32)[0].astype(dtype)
    dataset = data.load(save(tmp_path / "a.npz", x_train=x, x_test=x[:3]))
    assert dataset.x_train.dtype == torch.float32
    expected = torch.from_numpy(x.astype("f4")).permute(0, 3, 1, 2)
    assert torch.equal(dataset.x_train, expected)
    assert dataset.mean == pytest.approx(tuple(expected.mean((0, 2, 3)).tolist()), abs=1e-6)


def changed(x, value):
    x = x.astype(np.float32) / 255
    x[1, 2, 3, 0] = value
    return x


X, Y = small()
NAN = {"x_train": changed(X, np.nan), "x_test": changed(X, 0)[:3]}
INFINITE = {"x_train": changed(X, np.inf), "x_test": changed(X, 0)[:3]}
BAD = {
    "missing": ({"y_test": None}, "lacks y_test; it has x_train, y_train, x_test"),
    "empty": ({"x_train": X[:0], "y_train": Y[:0]}, "x_train is empty"),
    "lengths": ({"y_train": Y[:4]}, "y_train has 4 labels for 6 images"),
    "negative": ({"y_train": Y - 1}, "labels in y_train must lie in 0..1 .* found -1 to 1"),
    "test label": ({"y_test": Y[:3] + 1}, r"y_test must lie in 0..2 \(3 classes\), found 1 to 3"),
    "gap": ({"y_train": np.array([0, 1, 2, 0, 1, 10**9])}, "label 3 never occurs .* 1000000000"),
    "named range": ({"class_names": np.array(["a", "b"])}, r"must lie in 0..1 \(2 classes\)"),
    "float labels": ({"y_train": Y.astype(float)}, "y_train must be integers"),
    "one-hot": ({"y_train": np.eye(3, dtype=int)[Y]}, r"integers of shape \(N,\), got int64"),
    "nan": (NAN, "x_train holds NaN"),
    "infinite": (INFINITE, r"must lie in \[0, 1\], found 0 to inf"),
    "not scaled": ({"x_train": X.astype(float)}, r"x_train must lie in \[0, 1\], found 0 to 25"),
    "wide integers": ({"x_train": X.astype(int)}, "uint8 or floating point, got int64"),
    "ambiguous": ({"x_train": X[:, :3]}, r"shape \(6, 3, 10, 3\) of x_train is ambiguous"),
    "no channels": ({"x_train": X[..., :2]}, "has no channel axis"),
    "axes": ({"x_train": X[0, 0]}, "x_train must have 3 or 4 axes"),
    "sizes": ({"x_test": X[:3, :7]}, "x_train are 8x10 with 3 channels, those of x_test 7x10"),
    "dtypes": ({"x_test": changed(X, 0)[:3]}, "x_train is uint8 but x_test is float32"),
    "pickled": ({"x_train": np.array([{}], object)}, "cannot read .*a.npz .*allow_pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_npz_is_one_clear_line(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(FuncrobustError, match=message) as caught:
        data.load(save(tmp_path / "a.npz", **changes))
    assert "\n" not in str(caught.value)


def test_unreadable_npz_is_one_clear_line(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FuncrobustError, match=r"no such file: .*a\.npz"):
        data.load(str(path))
    path.write_bytes(b"words")
    with pytest.raises(FuncrobustError, match=r"a\.npz is not a \.npz file"):
        data.load(str(path))
    save(path)
    content = bytearray(path.read_bytes())
    content[300:310] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(FuncrobustError, match=r"cannot read .*a\.npz"):
        data.load(str(path))


def paint(path, colour, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def image_set(root):
    for half in ("train", "test"):
        paint(root / half / "dog" / "1.png", (10, 20, 30))
        paint(root / half / "cat" / "1.png", (1, 2, 3))
    paint(root / "train" / "cat" / "2.JPG", (200, 200, 200))
    return root


def test_image_folder(tmp_path):
    root = image_set(tmp_path / "set")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = data.load(str(root))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.y_train.tolist() == [0, 0, 1]
    assert dataset.x_train[2, :, 0, 0].tolist() == [10, 20, 30]
    assert dataset.x_test[0, :, 3, 5].tolist() == [1, 2, 3]
    assert dataset.name == str(root)


def test_image_folder_is_gray_only_if_all_are(tmp_path):
    for half in ("train", "test"):
        paint(tmp_path / half / "a" / "1.png", 7, mode="L")
        paint(tmp_path / half / "b" / "1.png", 9, mode="L")
    assert data.load(str(tmp_path)).image_shape == (1, 4, 6)
    paint(tmp_path / "test" / "b" / "2.png", (1, 2, 3, 4), mode="RGBA")
    dataset = data.load(str(tmp_path))
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.x_train[0, :, 0, 0].tolist() == [7, 7, 7]


def spoil_size(root):
    paint(root / "test" / "dog" / "9.png", (0, 0, 0), size=(6, 5))


def spoil_class(root):
    paint(root / "test" / "fox" / "1.png", (0, 0, 0))


def spoil_bytes(root):
    (root / "train" / "dog" / "2.png").write_bytes(b"\x89PNG nothing")


def spoil_end(root):
    path = root / "train" / "dog" / "1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def spoil_empty(root):
    for half in ("train", "test"):
        (root / half / "elk").mkdir()


def spoil_depth(root):
    paint(root / "train" / "cat" / "3.png", 40000, mode="I;16")


def spoil_half(root):
    (root / "test").rename(root / "validation")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"dog/9\.png is 6x5 \(width x height\), but .*cat/.* is 6x4"),
        (spoil_class, "class 'fox' is in only one of train and test"),
        (spoil_bytes, r"cannot read .*train/dog/2\.png"),
        (spoil_end, r"cannot read .*train/dog/1\.png"),
        (spoil_empty, r"train/elk has no \.png or \.jpg image"),
        (spoil_depth, r"cat/3\.png is in mode I;16"),
        (spoil_half, "has no folder 'test'"),
    ],
)
def test_bad_image_folder_is_one_clear_line(tmp_path, spoil, message):
    root = image_set(tmp_path / "set")
    spoil(root)
    with pytest.raises(FuncrobustError, match=message) as caught:
        data.load(str(root))
    assert "\n" not in str(caught.value)


def test_empty_image_folder(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FuncrobustError, match=r"train is empty"):
        data.load(str(tmp_path))
