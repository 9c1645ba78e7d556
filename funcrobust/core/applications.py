r"""Vision with one robust classifier: each application is ψ with another start, ball or loss.

Every builder gives a `Perturbation`, ``(params, start, y, *, center=None) -> x``: to be run, and to
be differentiated in θ, as any other ψ. Santurkar et al. 2019 (arXiv:1906.09453) is the source of
all six; the `Walk` presets are the radii, step sizes and steps of their published notebooks, for
ImageNet-size images, and values measured here for 3×32×32 and smaller ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.balls.composed import masked, with_block_means
from funcrobust.core.balls.l2 import l2
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import Loss, logit
from funcrobust.core.network.functional import Predict
from funcrobust.core.perturbations.projected_gradient import Perturbation, psi


class Walk(NamedTuple):
    """ψ's L2 radius, step size and steps; lengths over the whole image, in units of the data."""

    radius: float
    step_size: float
    steps: int


WALKS: dict[str, dict[str, Walk]] = {
    "imagenet": {
        "generation": Walk(40.0, 1.0, 60), "inpainting": Walk(21.6, 0.1, 720),
        "super-resolution": Walk(8.0, 1.0, 40), "translation": Walk(80.0, 0.5, 200),
        "sketch": Walk(40.0, 1.0, 60), "painting": Walk(70.0, 1.0, 140),
    },
    # The published 60 steps of generation overdraw on our small networks: see docs/psi-study.md.
    "cifar": {
        "generation": Walk(30.0, 0.5, 20), "inpainting": Walk(6.0, 0.1, 20),
        "super-resolution": Walk(6.0, 0.1, 10), "translation": Walk(30.0, 0.25, 40),
        "sketch": Walk(30.0, 0.25, 40), "painting": Walk(10.0, 0.25, 40),
    },
    "digits": {
        "generation": Walk(6.0, 0.1, 40), "inpainting": Walk(2.0, 0.05, 20),
        "super-resolution": Walk(2.0, 0.05, 5), "translation": Walk(6.0, 0.1, 40),
        "sketch": Walk(6.0, 0.1, 40), "painting": Walk(3.0, 0.1, 20),
    },
}  # fmt: skip
"""Presets by the size of the images, then by application."""


def walk_for(application: str, image_shape: tuple[int, ...]) -> Walk:
    """Return the preset for images (C, H, W): those of the nearest of 224, 32 and 8 pixels."""
    height = image_shape[-2]
    size = "imagenet" if height > 84 else "cifar" if height > 16 else "digits"
    if application not in WALKS[size]:
        raise FuncrobustError(
            f"unknown application {application!r}: choose from {', '.join(WALKS[size])}"
        )
    return WALKS[size][application]


def generation(loss: Loss, walk: Walk) -> Perturbation:
    """Build generation: from a start of the class's statistics, toward the class y.

    Starts are `fr.class_conditional_gaussian` samples. Also image-to-image translation, from
    images of another class, and sketch-to-image, from flat drawings.
    """
    return psi(loss, l2(walk.radius), step_size=walk.step_size, steps=walk.steps, targeted=True)


translation = sketch = generation


def inpainting(loss: Loss, hole: Tensor, walk: Walk) -> Perturbation:
    """Build inpainting: toward the class y within the ``hole``, whatever is known held exactly.

    ``hole`` is boolean, true where pixels are unknown, and broadcasts against (B, C, H, W); the
    start should be `mean_filled` there. The paper adds λ·‖(1 − hole) ⊙ (x − x₀)‖₂ (`fr.away_from`)
    to the loss instead, which lets known pixels move.
    """
    return psi(
        loss, masked(l2(walk.radius), hole), step_size=walk.step_size, steps=walk.steps,
        targeted=True,
    )  # fmt: skip


def mean_filled(x: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with each image's own mean colour outside it: images (B, C, H, W)."""
    known = (~hole).expand_as(x).to(x.dtype)
    mean = (x * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(hole, mean, x)


def super_resolution(loss: Loss, low: Tensor, scale: int, walk: Walk) -> Perturbation:
    """Build super-resolution: toward y among the images whose scale×scale means are ``low``.

    ``low`` is (B, C, h, w); the start (B, C, scale·h, scale·w) should be its `bicubic`. The
    published form only keeps to an L2 ball around the start, and may contradict its input.
    """
    ball = with_block_means(l2(walk.radius), scale, low)
    return psi(loss, ball, step_size=walk.step_size, steps=walk.steps, targeted=True)


def bicubic(low: Tensor, scale: int) -> Tensor:
    """Enlarge (B, C, h, w) in [0, 1] by bicubic interpolation, clamped to [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def painting(features: Predict, where: Tensor, walk: Walk) -> Perturbation:
    """Build feature painting: raise coordinate y of the representation, within ``where`` alone.

    ``features`` is ``(params, x) -> (B, d)``, such as the `Predict` of
    `funcrobust.models.representation`; y (B,) holds coordinates below d; ``where`` is boolean and
    broadcasts against (B, C, H, W). Pixels outside stay as they are, to the bit.
    """
    return psi(
        logit(features), masked(l2(walk.radius), where), step_size=walk.step_size,
        steps=walk.steps, targeted=True,
    )  # fmt: skip
