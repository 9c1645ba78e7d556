"""Normalisation as the first layer, so that every threat model is stated in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError

CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalized(nn.Module):
    """``net((x - mean) / std)``: x (B, C, H, W) in [0, 1] in, logits (B, classes) out.

    ``mean`` and ``std`` are buffers of shape (1, C, 1, 1), saved with the weights: a network
    cannot be parted from the normalisation it was trained with. ``image_size`` is set for
    networks that accept one height and width only.

    Raises `FuncrobustError` for images with another number of channels, which broadcasting
    would otherwise let pass in silence, or of another size than ``image_size``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise FuncrobustError(
                f"mean and std need one number a channel each, got {len(mean)} and {len(std)}"
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise FuncrobustError(
                f"mean must be finite and std positive, got mean {tuple(mean)} and std {tuple(std)}"
            )
        self.net = net
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x.shape)
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits

    def _check(self, shape: torch.Size) -> None:
        channels, size = self.mean.shape[1], self.image_size
        if len(shape) < 3 or shape[-3] != channels:
            last = len(shape) == 4 and shape[-1] == channels
            mend = "x.movedim(-1, 1)" if last else "build it with in_channels= to match the data"
            raise FuncrobustError(
                f"this network takes images (B, {channels}, H, W), got {tuple(shape)}: {mend}"
            )
        if size is not None and tuple(shape[-2:]) != (size, size):
            raise FuncrobustError(
                f"this network takes {size}x{size} images, got {shape[-2]}x{shape[-1]}: resize "
                "them, or take a preact-... network, which accepts any size"
            )
