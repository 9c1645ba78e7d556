"""Sketch-to-image: generation from flat drawings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.applications.generation import generation
from funcrobust.core.randomness import generator
from funcrobust.core.tasks import Plan, Scene, Task
from funcrobust.core.walks import Restoring, Walk, Walks


def plan(scene: Scene) -> Plan:
    """From flat blocks of four colours, or the user's own drawing, toward a class.

    A ψ that restores begins with noise over the sketch, as SDEdit does (Meng et al. 2021,
    arXiv:2108.01073): it removes noise with the edges that no photograph has, and takes a sketch
    without noise for half finished.
    """
    sketch = start = scene.x if scene.own else flattened(scene.x)
    if scene.restoring is not None:
        draw = generator(scene.seed, "sketch", 0, sketch.device)
        start = sketch + NOISE * torch.randn(sketch.shape, generator=draw, device=draw.device)
    wanted = scene.asked(scene.y)
    return Plan(
        psi=lambda _: generation(scene.loss, scene.walk),
        params=scene.model.params,
        start=start,
        y=wanted,
        baselines={"sketch": sketch},
        wanted=wanted,
        titles=wanted,
        above={"sketch": sketch},
        below={} if scene.own else {"what was sketched": scene.x},
        caption="From flat blocks of colour toward the class.",
    )


def flattened(x: Tensor, colours: int = 4, blocks: int = 8) -> Tensor:
    """Turn images (B, C, H, W) into crude drawings: ``blocks``² squares in a few ``colours`` each.

    The colours are the k-means centres of the squares' means (scikit-learn's, one fixed start).
    """
    from sklearn.cluster import KMeans

    small = F.adaptive_avg_pool2d(x, min(blocks, *x.shape[-2:]))
    drawn = torch.empty_like(small)
    for i, image in enumerate(small):
        pixels = image.flatten(1).T.cpu().double().numpy()
        fitted = KMeans(colours, n_init=1, random_state=0).fit(pixels)
        flat = torch.from_numpy(fitted.cluster_centers_[fitted.labels_]).to(image)
        drawn[i] = flat.T.reshape(image.shape)
    return F.interpolate(drawn, size=x.shape[-2:], mode="nearest").clamp(0, 1)


NOISE = 0.2
"""Standard deviation of the noise over a sketch, in units of the data."""

WALKS = Walks(
    imagenet=Walk(40.0, 1.0, 60), cifar=Walk(30.0, 0.25, 40), digits=Walk(6.0, 0.1, 40),
    restoring=Restoring(20, 0.003, guidance=0.3),
)  # fmt: skip
TASK = Task(WALKS, plan, of_its_own=True)
