"""Test-time flip: a network that looks at an image and at its mirror image."""

from __future__ import annotations

from torch import Tensor, nn

FLIP = "-flip"
"""What ends the name of such a network."""


class FlipAveraged(nn.Sequential):
    """In evaluation mode ``(f(x) + f(mirrored x)) / 2``, logits; in training mode ``f(x)``.

    ``f`` is the sequence of its layers, whose parameter names stay as they are. Training, whose
    images are flipped at random, costs what it did; an evaluation costs twice, and an attack on it
    differentiates through both views. As in airbench (Jordan 2024, arXiv:2404.00498). For images
    whose mirror image is of their class.
    """

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        if self.training:
            return logits
        mirrored: Tensor = super().forward(x.flip(-1))
        return (logits + mirrored) / 2
