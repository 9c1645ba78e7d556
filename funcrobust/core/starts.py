"""Start images for generation: noise with the statistics of a class."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import flat
from funcrobust.core.images import as_float


class Indexed(Protocol):
    """Images (N, C, H, W), of which an index gives some: a tensor, or what reads files."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """Return those at an index, a mask or a slice."""


def class_conditional_gaussian(
    images: Indexed,
    labels: Tensor,
    wanted: Tensor,
    generator: torch.Generator,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    """Draw one sample of N(μ_y, Σ_y) for each label y of ``wanted`` (Santurkar et al. 2019).

    ``images`` (N, C, H, W) in [0, 1], or bytes, with ``labels`` (N,) give each class's empirical
    mean and covariance; ``wanted`` is (M,); returns (M, C, H, W) clamped to ``bounds``. Data of
    another shape (N, ...) will do; give its own bounds, or None. To draw again and again from the
    same images, keep a `GaussianStarts`.
    """
    return GaussianStarts(images, labels, bounds=bounds)(wanted, generator)


class GaussianStarts:
    """`class_conditional_gaussian` with the classes' statistics kept: ``(wanted, generator) -> x``.

    The covariance is never formed: μ + Xᵀw/√(n−1), with X the centred images and w ~ N(0, I_n), has
    exactly its law. Raises `FuncrobustError` for a class with fewer than two images, or labels that
    are not one an image.
    """

    def __init__(
        self,
        images: Indexed,
        labels: Tensor,
        *,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        if labels.shape != images.shape[:1]:
            raise FuncrobustError(
                f"{images.shape[0]} images need labels of shape ({images.shape[0]},), got "
                f"{tuple(labels.shape)}"
            )
        self._images, self._labels, self._bounds = images, labels, bounds
        self._of: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (M, C, H, W), clamped to the bounds, for the labels ``wanted`` (M,)."""
        shape = self._images.shape[1:]
        samples = as_float(self._images[:0]).new_empty((len(wanted), *shape))
        order = wanted.argsort(stable=True)
        drawn = []
        for y, count in sorted(Counter(wanted.tolist()).items()):  # the one wait for a GPU
            mean, centred = self._statistics(y)
            w = torch.randn(
                count, len(centred), generator=generator, device=mean.device, dtype=mean.dtype
            )
            drawn.append(mean + (w @ centred).reshape(-1, *shape))
        if drawn:
            samples[order] = torch.cat(drawn)
        return samples if self._bounds is None else samples.clamp(*self._bounds)

    def _statistics(self, y: int) -> tuple[Tensor, Tensor]:
        """μ_y and the centred images over √(n−1), worked out when first asked for."""
        if y not in self._of:
            x = as_float(self._images[self._labels == y])
            if len(x) < 2:
                raise FuncrobustError(
                    f"class {y} needs at least 2 images for a covariance, and has {len(x)}: add "
                    "images, or leave the class out"
                )
            mean = x.mean(0)
            self._of[y] = mean, flat(x - mean) / (len(x) - 1) ** 0.5
        return self._of[y]
