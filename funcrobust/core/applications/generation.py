"""Generation: from a start of the class's statistics, toward the class."""

from __future__ import annotations

import torch

from funcrobust.core.balls.ball import Ball
from funcrobust.core.losses import Loss
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.randomness import generator
from funcrobust.core.starts import class_conditional_gaussian
from funcrobust.core.tasks import Plan, Scene, Task
from funcrobust.core.walks import AnyWalk, Restoring, Walk, Walks


def generation(loss: Loss, walk: AnyWalk, *, ball: Ball | None = None) -> Perturbation:
    """Build generation: from a start of the class's statistics, toward the class y.

    Starts are `fr.class_conditional_gaussian` samples; ``ball`` is another than the walk's own.
    Image-to-image translation is the same from images of another class, and sketch-to-image from
    flat drawings. With a ψ that restores: ``generation(fr.logit(predict), fr.Restoring(10,
    0.05))``.
    """
    return walk.toward(loss, walk.ball if ball is None else ball)


def plan(scene: Scene, *, ball: Ball | None = None) -> Plan:
    """From noise with a class's mean and covariance, one class after another."""
    images, labels = scene.train
    one_by_one = torch.arange(scene.count, device=labels.device) % len(scene.class_names)
    wanted = scene.asked(one_by_one)
    draw = generator(scene.seed, "generate", 0, wanted.device)
    start = class_conditional_gaussian(images, labels, wanted, draw)
    return Plan(
        psi=lambda _: generation(scene.loss, scene.walk, ball=ball),
        params=scene.model.params,
        start=start,
        y=wanted,
        baselines={"start": start},
        wanted=wanted,
        titles=wanted,
        above={"Gaussian start": start},
        caption="From noise with a class's mean and covariance, toward the class above.",
    )


# The published 60 steps overdraw on our small networks: see docs/psi-study.md.
WALKS = Walks(
    imagenet=Walk(40.0, 1.0, 60), cifar=Walk(30.0, 0.5, 20), digits=Walk(6.0, 0.1, 40),
    restoring=Restoring(20, 0.05, guidance=0.3),
)  # fmt: skip
TASK = Task(WALKS, plan, images=False, of_its_own=True)
