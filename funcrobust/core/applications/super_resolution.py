"""Super-resolution: more pixels, among the images whose means over squares are the ones given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.composed import with_block_means
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.losses import Loss
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.tasks import Plan, Scene, Task, psnr
from funcrobust.core.walks import AnyWalk, Restoring, Walk, Walks


def super_resolution(loss: Loss, low: Tensor, scale: int, walk: AnyWalk) -> Perturbation:
    """Build super-resolution: toward y among the images whose scale×scale means are ``low``.

    ``low`` is (B, C, h, w); the start (B, C, scale·h, scale·w) should be its bicubic
    enlargement, clamped. The published form only keeps to an L2 ball around the start, and may
    contradict its input.
    """
    return walk.toward(loss, _ball(low, scale, walk))


def _ball(low: Tensor, scale: int, walk: AnyWalk) -> Ball:
    return with_block_means(walk.ball, scale, low)


def bicubic(low: Tensor, scale: int) -> Tensor:
    """Enlarge (B, C, h, w) in [0, 1] by bicubic interpolation, clamped to [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def plan(scene: Scene, *, scale: int) -> Plan:
    """From the means over scale×scale squares, toward what is asked for or seen in the bicubic."""
    require_count("scale", scale, minimum=1)
    if any(size % scale for size in scene.x.shape[-2:]):
        raise FuncrobustError(
            f"scale {scale} does not divide images of {'x'.join(map(str, scene.x.shape[-2:]))}"
        )
    low = F.avg_pool2d(scene.x, scale)
    smooth = bicubic(low, scale)
    consistent = _ball(low, scale, scene.walk).project(smooth, smooth).clamp(0, 1)
    start = smooth if scene.restoring is None else consistent
    aim = scene.aim("the class that the classifier sees in the bicubic image")
    return Plan(
        psi=lambda part: super_resolution(scene.loss, low[part], scale, scene.walk),
        params=scene.model.params,
        start=start,
        y=scene.asked(scene.sees(start)),
        baselines={"bicubic": smooth, "bicubic, consistent": consistent},
        wanted=scene.asked(scene.y),
        score=lambda x: {"PSNR": psnr(x, scene.x)},
        titles=scene.asked(scene.y),
        above={
            "input": low.repeat_interleave(scale, -1).repeat_interleave(scale, -2),
            "bicubic": smooth,
        },
        below={"truth": scene.x},
        caption=f"{scale} times enlarged. ψ toward {aim}, among the images with the input's "
        "averages.",
    )


WALKS = Walks(
    imagenet=Walk(8.0, 1.0, 40), cifar=Walk(6.0, 0.1, 10), digits=Walk(2.0, 0.05, 5),
    restoring=Restoring(3, 0.5),
)  # fmt: skip
TASK = Task(WALKS, plan)
