"""Painting: a class, or one coordinate of the representation, raised within a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.balls.composed import masked
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import logit
from funcrobust.core.network.functional import Predict
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.tasks import Plan, Scene, Task, centred_square
from funcrobust.core.walks import AnyWalk, Restoring, Walk, Walks


def painting(features: Predict, where: Tensor, walk: AnyWalk) -> Perturbation:
    """Build painting: raise coordinate y of the representation, within ``where`` alone.

    ``features`` is ``(params, x) -> (B, d)``, such as the `Predict` of
    `funcrobust.models.representation`, or of the classifier itself, whose coordinates are classes;
    y (B,) holds coordinates below d; ``where`` is boolean and broadcasts against (B, C, H, W).
    Pixels outside stay as they are, to the bit.
    """
    loss = logit(features, guidance=getattr(walk, "guidance", 0.0))
    return walk.toward(loss, masked(walk.ball, where))


def plan(scene: Scene, *, hole: float | None, feature: int | None) -> Plan:
    """In a centred square of ``hole`` of each side: a class, or one ``feature`` by its number.

    A ψ that restores paints a class, the one asked for or each image's next, in a square of three
    quarters of a side. Any other raises, in a square of half a side, the feature that speaks most
    for the class asked for, or else for class 0: what a feature stands for need not look like a
    thing to a person, since each serves several classes.
    """
    if scene.restoring is not None and feature is None:
        return _class_painted(scene, centred_square(scene.x, 0.75 if hole is None else hole))
    return _feature_painted(scene, centred_square(scene.x, 0.5 if hole is None else hole), feature)


def _class_painted(scene: Scene, where: Tensor) -> Plan:
    wanted = scene.asked((scene.y + 1) % len(scene.class_names))
    return Plan(
        psi=lambda _: painting(scene.model.predict, where, scene.walk),
        params=scene.model.params,
        start=scene.x,
        y=wanted,
        baselines={"image": scene.x},
        wanted=wanted,
        score=lambda x: {"change outside": change_outside(x, scene.x, where)},
        titles=wanted,
        above={"image": scene.x},
        caption=f"{scene.aim('The class above')}, painted within the central square.",
    )


def _feature_painted(scene: Scene, where: Tensor, feature: int | None) -> Plan:
    network, head = scene.features()
    width = head.shape[1]
    if feature is None:
        feature = int(head[scene.target or 0].argmax())
    if not 0 <= feature < width:
        raise FuncrobustError(f"feature must be below {width}, got {feature}")

    def value(x: Tensor) -> float:
        with torch.no_grad():
            return float(network.predict(network.params, x)[:, feature].mean())

    before = value(scene.x)
    return Plan(
        psi=lambda _: painting(network.predict, where, scene.walk),
        params=network.params,
        start=scene.x,
        y=torch.full_like(scene.y, feature),
        baselines={"image": scene.x},
        score=lambda x: {
            f"feature {feature} raised by": value(x) - before,
            "change outside": change_outside(x, scene.x, where),
        },
        titles=scene.y,
        above={"image": scene.x},
        caption=f"Feature {feature} of {width} raised within the central square.",
    )


def change_outside(made: Tensor, x: Tensor, where: Tensor) -> float:
    """Return the largest change of a pixel outside ``where``."""
    return float((made - x)[..., ~where].abs().max())


WALKS = Walks(
    imagenet=Walk(70.0, 1.0, 140), cifar=Walk(10.0, 0.25, 40), digits=Walk(3.0, 0.1, 20),
    restoring=Restoring(20, 0.01, guidance=0.3),
)  # fmt: skip
TASK = Task(WALKS, plan)
