"""Inpainting: what is missing, drawn toward the class that the rest looks like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.balls.composed import masked
from funcrobust.core.examples import inner, per_example, squared_norm
from funcrobust.core.losses import Loss
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.tasks import Plan, Scene, Task, centred_square, psnr
from funcrobust.core.walks import AnyWalk, Restoring, Walk, Walks


def inpainting(loss: Loss, hole: Tensor, walk: AnyWalk) -> Perturbation:
    """Build inpainting: toward the class y within the ``hole``, whatever is known held exactly.

    ``hole`` is boolean, true where pixels are unknown, and broadcasts against (B, C, H, W); the
    start should be smooth there, each image's mean colour say. The paper adds
    λ·‖(1 − hole) ⊙ (x − x₀)‖₂ (`fr.away_from`) to the loss instead, which lets known pixels move.
    """
    return walk.toward(loss, masked(walk.ball, hole))


def mean_filled(x: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with each image's own mean colour outside it: images (B, C, H, W)."""
    known = (~hole).expand_as(x).to(x.dtype)
    mean = (x * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(hole, mean, x)


def smooth_filled(x: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with what is smoothest, the least ‖∇x‖² that agrees with all that is known.

    Images (B, C, H, W). Solves Laplace's equation on the hole's pixels, mirrored at the image's
    border, by conjugate gradients from `mean_filled`.
    """

    def slope(u: Tensor) -> Tensor:
        by_axis = ((u.diff(dim=-2), (0, 0, 1, 0), (0, 0, 0, 1)), (u.diff(dim=-1), (1, 0), (0, 1)))
        both = (F.pad(d, before) - F.pad(d, after) for d, before, after in by_axis)
        return torch.where(hole, sum(both, torch.zeros_like(u)), 0.0)

    u = mean_filled(x, hole)
    residual = direction = -slope(u)
    left = squared_norm(residual)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(2 * max(x.shape[-2:])):
        curved = slope(direction)
        rate = left / inner(direction, curved).clamp_min(tiny)
        u = u + per_example(rate, u) * direction
        residual = residual - per_example(rate, u) * curved
        before, left = left, squared_norm(residual)
        direction = residual + per_example(left / before.clamp_min(tiny), u) * direction
    return u


def plan(scene: Scene, *, hole: float | None) -> Plan:
    """A centred square of ``hole`` of each side (half), first filled from what is around it.

    ψ goes toward the class asked for, or what the classifier sees in the filled image: the true
    class is not known where something is missing.
    """
    missing = centred_square(scene.x, 0.5 if hole is None else hole)
    mean, smooth = mean_filled(scene.x, missing), smooth_filled(scene.x, missing)
    fills = {"mean fill": mean, "smooth fill": smooth}
    filled = mean if scene.restoring is None else smooth
    aim = scene.aim("the class that the classifier sees in the filled image")
    return Plan(
        psi=lambda _: inpainting(scene.loss, missing, scene.walk),
        params=scene.model.params,
        start=filled,
        y=scene.asked(scene.sees(filled)),
        baselines=fills,
        wanted=scene.asked(scene.y),
        score=lambda x: {"PSNR in the hole": psnr(x[..., missing], scene.x[..., missing])},
        titles=scene.asked(scene.y),
        above={"input": torch.where(missing, 0.0, scene.x), **fills},
        below={"truth": scene.x},
        caption=f"ψ toward {aim}. Pixels outside the hole are untouched.",
    )


WALKS = Walks(
    imagenet=Walk(21.6, 0.1, 720), cifar=Walk(6.0, 0.1, 20), digits=Walk(2.0, 0.05, 20),
    restoring=Restoring(3, 0.5),
)  # fmt: skip
TASK = Task(WALKS, plan)
