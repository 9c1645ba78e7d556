"""Feature painting: one coordinate of the representation, raised within a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.balls.composed import masked
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import logit
from funcrobust.core.network.functional import Predict
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.tasks import Plan, Scene, Scores, Task, centred_square
from funcrobust.core.walks import AnyWalk, Walk, Walks


def painting(features: Predict, where: Tensor, walk: AnyWalk) -> Perturbation:
    """Build feature painting: raise coordinate y of the representation, within ``where`` alone.

    ``features`` is ``(params, x) -> (B, d)``, such as the `Predict` of
    `funcrobust.models.representation`; y (B,) holds coordinates below d; ``where`` is boolean and
    broadcasts against (B, C, H, W). Pixels outside stay as they are, to the bit.
    """
    return walk.toward(logit(features), masked(walk.ball, where))


def plan(scene: Scene, *, hole: float, feature: int | None) -> Plan:
    """In a centred square of ``hole`` of each side, raise the ``feature`` of that number.

    By default the one that speaks most for the class asked for, or else for class 0.
    """
    where = centred_square(scene.x, hole)
    network, head = scene.features()
    width = head.shape[1]
    if feature is None:
        feature = int(head[scene.target or 0].argmax())
    if not 0 <= feature < width:
        raise FuncrobustError(f"feature must be below {width}, got {feature}")

    def score(x: Tensor) -> Scores:
        with torch.no_grad():
            value = float(network.predict(network.params, x)[:, feature].mean())
        outside = float((x - scene.x)[..., ~where].abs().max())
        return {f"feature {feature}": value, "change outside": outside}

    return Plan(
        psi=lambda _: painting(network.predict, where, scene.walk),
        params=network.params,
        start=scene.x,
        y=torch.full_like(scene.y, feature),
        baselines={"image": scene.x},
        score=score,
        titles=scene.y,
        above={"image": scene.x},
        caption=f"Feature {feature} of {width} raised within the central square.",
    )


WALKS = Walks(imagenet=Walk(70.0, 1.0, 140), cifar=Walk(10.0, 0.25, 40), digits=Walk(3.0, 0.1, 20))
TASK = Task(WALKS, plan)
