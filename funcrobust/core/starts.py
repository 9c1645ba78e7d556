"""Start images for generation: noise with the statistics of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError


def class_conditional_gaussian(
    images: Tensor, labels: Tensor, wanted: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw one sample of N(μ_y, Σ_y) for each label y of ``wanted`` (Santurkar et al. 2019).

    ``images`` (N, C, H, W) in [0, 1] with ``labels`` (N,) give each class's empirical mean and
    covariance; ``wanted`` is (M,); returns (M, C, H, W) clamped to [0, 1]. To draw again and again
    from the same images, keep a `GaussianStarts`.
    """
    return GaussianStarts(images, labels)(wanted, generator)


class GaussianStarts:
    """`class_conditional_gaussian` with the classes' statistics kept: ``(wanted, generator) -> x``.

    The covariance is never formed: μ + Xᵀw/√(n−1), with X the centred images and w ~ N(0, I_n), has
    exactly its law. Raises `FuncrobustError` for a class with fewer than two images.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._shape = images.shape[1:]
        self._images, self._labels = images, labels
        self._of: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (M, C, H, W), clamped to [0, 1], for the labels ``wanted`` (M,)."""
        samples = self._images.new_empty((len(wanted), *self._shape))
        for y in wanted.unique().tolist():
            mean, centred = self._statistics(y)
            chosen = wanted == y
            w = torch.randn(
                int(chosen.sum()), len(centred), generator=generator, device=mean.device,
                dtype=mean.dtype,
            )  # fmt: skip
            samples[chosen] = mean + (w @ centred).reshape(-1, *self._shape)
        return samples.clamp(0.0, 1.0)

    def _statistics(self, y: int) -> tuple[Tensor, Tensor]:
        """μ_y and the centred images over √(n−1), worked out when first asked for."""
        if y not in self._of:
            x = self._images[self._labels == y]
            if len(x) < 2:
                raise FuncrobustError(f"class {y} needs at least 2 images for a covariance")
            mean = x.mean(0)
            self._of[y] = mean, (x - mean).flatten(1) / (len(x) - 1) ** 0.5
        return self._of[y]
