"""A set as its files hold it, before it becomes tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Arrays(NamedTuple):
    """A decoded set before it becomes tensors: images (N, H, W, C), integer labels (N,)."""

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    class_names: tuple[str, ...]

    def named(self) -> dict[str, NDArray[Any]]:
        """Return the four arrays by name, each in C order."""
        keys = ("x_train", "y_train", "x_test", "y_test")
        return {key: np.ascontiguousarray(getattr(self, key)) for key in keys}
