"""Muon: steps of momentum whose singular values are all about 1.

K. Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025
(arXiv:2502.16982, equation 4). Of a matrix G = U S Vᵀ of momentum the step is, but for the rate,

    O = 0.2 √max(rows, columns) · U q(S / ‖G‖) Vᵀ,   q = p ∘ p ∘ p ∘ p ∘ p,
    p(s) = 3.4445 s − 4.7750 s³ + 2.0315 s⁵,

where q takes shares from 0.002 to 1 to between 0.68 and 1.21. So every direction in which a weight
matrix can move moves alike, where plain momentum moves along the few that the gradient is largest
in; and an entry of O is as large, about 0.2 in root mean square, as one of AdamW's steps: one rate
does for both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchopt
from torch import Tensor

from funcrobust.core.network.functional import Params
from funcrobust.core.training.sharding import spread_like, whole

Transformation = torchopt.base.GradientTransformation
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
TINY = 1e-7
"""A gradient of zeros stays one."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U q(S / ‖·‖) Vᵀ of a matrix (rows, columns), by Newton and Schulz's iteration.

    p(X) = aX + (bA + cA²)X with A = XXᵀ takes the singular values alone, and needs products alone.
    """
    a, b, c = COEFFICIENTS
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T  # the smaller product
    x = wide / (wide.norm() + TINY)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x if wide is matrix else x.T
    return found


def _step(kernel: Tensor) -> Tensor:
    """Of a kernel (out, in, height, width) the matrix is (out, in·height·width)."""
    matrix = kernel.flatten(1)
    large: Tensor = 0.2 * math.sqrt(max(matrix.shape)) * orthogonalized(matrix)
    return large.reshape(kernel.shape)


def scale_by_muon(momentum: float) -> Transformation:
    """Build the transformation: Nesterov's momentum, then O of it, tensor by tensor.

    Of tensors that are spread over processes (`sharded`) each step is of the whole one.
    """

    def init(params: Params) -> Params:
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(
        updates: Params, state: Params, *, params: Any = None, inplace: bool = True
    ) -> tuple[Params, Params]:
        del params, inplace
        moved = {name: momentum * state[name] + g for name, g in updates.items()}
        ahead = {name: g + momentum * moved[name] for name, g in updates.items()}
        return {name: spread_like(_step(whole(g)), g) for name, g in ahead.items()}, moved

    return Transformation(init, update)
