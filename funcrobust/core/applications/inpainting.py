"""Inpainting: what is missing, drawn toward the class that the rest looks like."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.balls.composed import masked
from funcrobust.core.losses import Loss
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.tasks import Plan, Scene, Task, centred_square, psnr
from funcrobust.core.walks import AnyWalk, Walk, Walks


def inpainting(loss: Loss, hole: Tensor, walk: AnyWalk) -> Perturbation:
    """Build inpainting: toward the class y within the ``hole``, whatever is known held exactly.

    ``hole`` is boolean, true where pixels are unknown, and broadcasts against (B, C, H, W); the
    start should be `mean_filled` there. The paper adds λ·‖(1 − hole) ⊙ (x − x₀)‖₂ (`fr.away_from`)
    to the loss instead, which lets known pixels move.
    """
    return walk.toward(loss, masked(walk.ball, hole))


def mean_filled(x: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with each image's own mean colour outside it: images (B, C, H, W)."""
    known = (~hole).expand_as(x).to(x.dtype)
    mean = (x * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(hole, mean, x)


def plan(scene: Scene, *, hole: float) -> Plan:
    """A centred square of ``hole`` of each side, first filled with the mean colour around it.

    ψ goes toward the class asked for, or what the classifier sees in the filled image: the true
    class is not known where something is missing.
    """
    missing = centred_square(scene.x, hole)
    filled = mean_filled(scene.x, missing)
    aim = scene.aim("the class that the classifier sees in the filled image")
    return Plan(
        psi=lambda _: inpainting(scene.loss, missing, scene.walk),
        params=scene.model.params,
        start=filled,
        y=scene.asked(scene.sees(filled)),
        baselines={"mean fill": filled},
        wanted=scene.asked(scene.y),
        score=lambda x: {"PSNR in the hole": psnr(x[..., missing], scene.x[..., missing])},
        titles=scene.y,
        above={"input": torch.where(missing, 0.0, scene.x), "mean fill": filled},
        below={"truth": scene.x},
        caption=f"ψ toward {aim}. Pixels outside the hole are untouched.",
    )


WALKS = Walks(imagenet=Walk(21.6, 0.1, 720), cifar=Walk(6.0, 0.1, 20), digits=Walk(2.0, 0.05, 20))
TASK = Task(WALKS, plan)
