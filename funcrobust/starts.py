"""Start images for generation: noise with the statistics of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.errors import FuncrobustError


def class_conditional_gaussian(
    images: Tensor, labels: Tensor, wanted: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw one sample of N(μ_y, Σ_y) for each label y of ``wanted`` (Santurkar et al. 2019).

    ``images`` (N, C, H, W) in [0, 1] with ``labels`` (N,) give each class's empirical mean and
    covariance; ``wanted`` is (M,); returns (M, C, H, W) clamped to [0, 1]. The covariance is never
    formed: μ + Xᵀw/√(n−1), with X the centred images and w ~ N(0, I_n), has exactly its law.
    """
    samples = images.new_empty((len(wanted), *images.shape[1:]))
    for y in wanted.unique().tolist():
        x = images[labels == y]
        if len(x) < 2:
            raise FuncrobustError(f"class {y} needs at least 2 images for a covariance")
        mean = x.mean(0)
        chosen = wanted == y
        w = torch.randn(
            int(chosen.sum()), len(x), generator=generator, device=x.device, dtype=x.dtype
        )
        spread = w @ (x - mean).flatten(1) / (len(x) - 1) ** 0.5
        samples[chosen] = mean + spread.reshape(-1, *x.shape[1:])
    return samples.clamp(0.0, 1.0)
