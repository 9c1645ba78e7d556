"""A CIFAR-10 of 18 images."""

import numpy as np
import pytest
from published_sets import ROWS, use

from funcrobust.data.cache import digests
from funcrobust.data.dataset import Arrays
from funcrobust.data.sets import cifar10


@pytest.fixture
def tiny(monkeypatch):
    """A synthetic set whose hashes stand in for CIFAR-10's."""
    rng = np.random.default_rng(0)
    n = 5 * ROWS
    arrays = Arrays(
        rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
        rng.integers(0, 10, n, np.uint8),
        rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8),
        rng.integers(0, 10, ROWS, np.uint8),
        cifar10.CLASS_NAMES,
    )
    use(monkeypatch, "cifar10", digests=digests(arrays))
    return arrays
