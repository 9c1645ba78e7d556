"""Image-to-image translation: generation from images of another class."""

from __future__ import annotations

from dataclasses import replace

from funcrobust.core.applications.generation import generation
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.tasks import Plan, Scene, Task
from funcrobust.core.walks import Restoring, Walk, Walks


def plan(scene: Scene) -> Plan:
    """Toward the class asked for, from images of others; or each toward the next class."""
    if scene.target is not None and not scene.own:
        scene = _others(scene, scene.target)
    wanted = scene.asked((scene.y + 1) % len(scene.class_names))
    return Plan(
        psi=lambda _: generation(scene.loss, scene.walk),
        params=scene.model.params,
        start=scene.x,
        y=wanted,
        baselines={"before": scene.x},
        wanted=wanted,
        titles=wanted,
        above={"image": scene.x},
        caption=f"From images of other classes toward {scene.aim('the class above')}.",
    )


def _others(scene: Scene, target: int) -> Scene:
    """Leave out images that are of the class asked for already."""
    others = scene.y != target
    if not others.any():
        raise FuncrobustError("all these images are of that class already: ask for more")
    return replace(scene, x=scene.x[others], y=scene.y[others])


WALKS = Walks(
    imagenet=Walk(80.0, 0.5, 200), cifar=Walk(30.0, 0.25, 40), digits=Walk(6.0, 0.1, 40),
    restoring=Restoring(20, 0.01, guidance=0.3),
)  # fmt: skip
TASK = Task(WALKS, plan)
