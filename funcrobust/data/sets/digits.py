"""scikit-learn's 8x8 digits: embedded in the library, so there is always something to run on."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from funcrobust.data.arrays import Arrays
from funcrobust.data.sources import Embedded

_TEST_SIZE = 397
_LEVELS = 16  # gray runs from 0 to 16


def read() -> Arrays:
    """Return the 1797 digits as (N, 8, 8, 1) uint8, split 1400/397, stratified, always alike."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=_TEST_SIZE, stratify=digits.target, random_state=0
    )
    return Arrays(x_train, y_train, x_test, y_test, tuple(map(str, digits.target_names)))


SET = Embedded(read, library="scikit-learn", mirrored=False)
