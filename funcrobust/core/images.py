"""Images as the networks take them."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError


def as_float(x: Tensor) -> Tensor:
    """Return images as floats in [0, 1]: uint8 becomes float32 / 255, floats stay as they are.

    Raises `FuncrobustError` for any other type: what its values mean is not known here.
    """
    if x.is_floating_point():
        return x
    if x.dtype != torch.uint8:
        raise FuncrobustError(
            f"images must be uint8 or floating point, got {x.dtype}: divide by its largest value"
        )
    return x.to(torch.float32) / 255
