"""The dataset: its moments, its subsets, its device."""

import numpy as np
import pytest
import torch

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data.dataset import Arrays, dataset_from

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_mean_and_std_are_those_of_the_floats():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (9, 4, 5, 3), np.uint8)
    dataset = dataset_from("a", Arrays(x, np.zeros(9, int), x, np.zeros(9, int), ("0",)), "test")
    floats = data.as_float(dataset.x_train).double()
    assert dataset.mean == pytest.approx(tuple(floats.mean((0, 2, 3)).tolist()), abs=1e-7)
    expected = floats.std((0, 2, 3), correction=0)
    assert dataset.std == pytest.approx(tuple(expected.tolist()), abs=1e-7)


def test_as_float():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(data.as_float(x), torch.tensor([0, 0.2, 1]))
    floats = torch.rand(3, dtype=torch.float64)
    assert data.as_float(floats) is floats
    with pytest.raises(FuncrobustError, match="int64"):
        data.as_float(torch.tensor([1]))


def test_subset_is_seeded_nested_and_paired(digits):
    small, large = digits.subset(20, 10, seed=3), digits.subset(50, None, seed=3)
    assert small.x_train.shape == (20, 1, 8, 8)
    assert small.x_test.shape == (10, 1, 8, 8)
    assert torch.equal(small.x_train, large.x_train[:20])
    assert large.x_test is digits.x_test
    assert not torch.equal(digits.subset(20, 10, seed=4).x_train, small.x_train)
    place = {image.numpy().tobytes(): i for i, image in enumerate(digits.x_train)}
    index = [place[image.numpy().tobytes()] for image in large.x_train]
    assert large.y_train.tolist() == digits.y_train[index].tolist()
    assert len(set(index)) == 50
    assert small.class_names == digits.class_names


@pytest.mark.parametrize(
    ("count", "message"), [(0, "whole number >= 1"), (1401, "cannot take 1401 train examples")]
)
def test_bad_subset(digits, count, message):
    with pytest.raises(FuncrobustError, match=message):
        digits.subset(count, None, seed=0)


@pytest.mark.parametrize("device", DEVICES)
def test_to_keeps_everything_but_the_device(digits, device):
    moved = digits.to(device)
    assert {t.device.type for t in (moved.x_train, moved.y_train, moved.x_test, moved.y_test)} == {
        device
    }
    assert moved.x_train.dtype == torch.uint8
    assert torch.equal(moved.x_test.cpu(), digits.x_test)
    assert moved.mean == pytest.approx(digits.mean)
    assert "tensor" not in repr(moved)
