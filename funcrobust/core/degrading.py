r"""Images made worse by a random amount: where a ψ that is to restore them starts.

A `Degrade` is ``(x, y, generator) -> s``: x (B, …) in units of the data, y (B,), and s like x, not
clamped. The amount differs from image to image, so that one ψ meets all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import per_example

Degrade = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""``(x, y, generator) -> s``."""


def gaussian_noise(low: float = 0.02, high: float = 0.6) -> Degrade:
    """Build s = x + σ·n, n ~ N(0, I), log σ uniform from that of ``low`` to that of ``high``.

    σ is one an image: as many images at every order of magnitude of the noise, what denoising score
    matching at all scales takes (Song & Ermon 2019, arXiv:1907.05600; Li et al. 2019,
    arXiv:1910.07762), without telling the network which. ``low = high`` is one level. Raises
    `FuncrobustError` unless 0 < low ≤ high.
    """
    if not 0 < require_finite("low", low) <= require_finite("high", high):
        raise FuncrobustError(f"noise must have 0 < low <= high, got {low} and {high}")

    def degrade(x: Tensor, _y: Tensor, generator: torch.Generator) -> Tensor:
        u = _uniform(x, generator)
        sigma = (math.log(low) + u * math.log(high / low)).exp()
        return x + sigma * _normal(x, generator)

    return degrade


def mixed_with(draw: Degrade, most: float = 1.0) -> Degrade:
    """Build s = (1 − t)·x + t·z, z = draw(x, y, generator), t uniform in [0, ``most``].

    t is one an image: the straight ways from where drawing starts to where it should end. With z a
    start image of the class ψ learns to restore what it meets on its way from one (as rectified
    flow does, which is told t; Liu et al. 2022, arXiv:2209.03003). Raises `FuncrobustError` unless
    0 ≤ most ≤ 1.
    """
    if not 0 <= most <= 1:
        raise FuncrobustError(f"most must be in [0, 1], got {most}")

    def degrade(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        t = most * _uniform(x, generator)
        return (1 - t) * x + t * draw(x, y, generator)

    return degrade


def in_shares(*shares: tuple[float, Degrade]) -> Degrade:
    """Degrade the first share of a batch in the first way, the next share in the next.

    Shares are positive, and relative to their sum; the counts are rounded, so that each image is
    degraded in one way. Raises `FuncrobustError` for a share that is not positive.
    """
    for share, _ in shares:
        if require_finite("a share", share) == 0:
            raise FuncrobustError("a share of 0 does nothing: leave it out")
    total = sum(share for share, _ in shares)

    def degrade(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        parts, done, first = [], 0.0, 0
        for share, way in shares:
            done += share
            end = round(len(x) * done / total)
            parts.append(way(x[first:end], y[first:end], generator))
            first = end
        return torch.cat(parts)

    return degrade


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one number of [0, 1) for each example, to be broadcast against x."""
    return per_example(torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype), x)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
