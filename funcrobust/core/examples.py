"""Arithmetic over examples: norms and products over all dimensions but the first.

Everywhere x is (B, ...), of any shape: images (B, C, H, W), features (B, d), embeddings (B, T, d).
"""

from __future__ import annotations

import torch
from torch import Tensor


def flat(x: Tensor) -> Tensor:
    """Lay out each example as a row: (B, ...) to (B, d), d = 1 for x (B,)."""
    return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, …, 1), to broadcast over ``like`` (B, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ per example, (B,)."""
    return flat(a * b).sum(1)


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖₂² per example, (B,), at least in float32: an image's leaves float16 at both ends."""
    return flat(at_least_single(x).square()).sum(1)


def at_least_single(x: Tensor) -> Tensor:
    """Return x, of half precision in float32: for sums, and for what knows no half."""
    return x.float() if x.dtype.itemsize < 4 else x


def safe_norm(x: Tensor) -> Tensor:
    """‖x‖₂ per example, (B,), with derivative 0 rather than NaN where x = 0."""
    squared = squared_norm(x)
    positive = squared > 0
    # The inner where keeps sqrt'(0) = inf out of the derivative.
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def largest_to_one(x: Tensor) -> Tensor:
    """Divide each example by its largest entry's size, held constant; 0 stays 0.

    Where that is below 1e-30 (in float32) the derivative is taken as 0: it would be the inverse,
    and soon infinite.
    """
    single = at_least_single(x)
    tiny = torch.finfo(single.dtype).tiny
    largest = per_example(flat(single.detach()).abs().amax(1), x)
    scaled = (single / largest.clamp_min(tiny)).to(x.dtype)
    return torch.where(largest > tiny**0.8, scaled, scaled.detach())


def unit(x: Tensor) -> Tensor:
    """x/‖x‖₂ per example, with its derivative; 0, with a finite derivative, where x = 0.

    Of length 1 however small x is, down to the smallest normal number (1e-38 in float32): the
    squares of a confident network's gradients underflow, and steps too short to matter would pass
    for robustness. So the largest entry is made 1 first.
    """
    scaled = largest_to_one(x)
    return (scaled / per_example(squared_norm(scaled), x).clamp_min(0.5).sqrt()).to(x.dtype)
