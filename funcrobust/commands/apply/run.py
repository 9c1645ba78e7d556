"""``apply``: what one robust classifier can draw, each with a picture and a number.

What is peculiar to an application is in its file of `funcrobust.core.applications`; here are the
data, the judge, the picture. An independent classifier judges. Labels are never those of the test
set where a user would not have them: inpainting and super-resolution go toward the class that the
classifier itself sees.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funcrobust import checkpoints
from funcrobust.commands.apply import pictures
from funcrobust.commands.apply.drawing import Figures, draw, figures, show
from funcrobust.commands.apply.scene import make_scene
from funcrobust.core import applications
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.tasks import Task
from funcrobust.report.console import Reporter
from funcrobust.report.records import write_json
from funcrobust.running.classifier import STRONGEST, default_checkpoint, pick_judge
from funcrobust.running.dataset import dataset_for, load_data, require_same_images
from funcrobust.running.machine import pick_device
from funcrobust.running.options import CommonOptions


@dataclass(frozen=True)
class ApplyOptions:
    """Options of `apply`; None takes the application's preset for the image size."""

    checkpoint: str | None = None
    judge: str | None = None
    """The independent classifier; None is the shipped one where it fits, "none" is nobody."""
    model: str | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    image: tuple[Path, ...] = ()
    """The user's own images, in place of the test set's."""
    to: str | None = None
    """The class to go toward, by name or number."""
    examples: int = 100
    steps: int | None = None
    step_size: float | None = None
    eps: float | None = None
    hole: float = 0.5
    """Side of inpainting's hole and painting's patch, as a share of the image's."""
    scale: int = 4
    """How many times super-resolution enlarges."""
    feature: int | None = None
    """The coordinate that painting raises; None is the one that speaks most for the class."""
    png: Path | None = None
    json_file: Path | None = None
    seed: int = 0
    device: str = "auto"


def apply(task: str, options: ApplyOptions, reporter: Reporter) -> Figures:
    """Run one application; write its picture, show its numbers beside the baseline's."""
    chosen = applications.find(task)
    extra = extra_options(task, chosen, options)
    png = options.png or Path(f"{task}.png")
    check(task, chosen, options, png)
    device = pick_device(options.device)
    name = options.checkpoint or default_checkpoint(STRONGEST)
    module, card = checkpoints.load(name, model=options.model)
    wanted = CommonOptions(dataset=dataset_for(options.dataset, card), data_dir=options.data_dir)
    dataset = load_data(wanted, device, reporter)
    require_same_images(card, dataset)
    judge = pick_judge(options.judge, name, card, device)
    scene = make_scene(chosen.walks, module, dataset, options, reporter)
    plan = chosen.plan(scene, **extra)
    walk = scene.walk
    reporter.say(
        f"{task}: {len(plan.start)} images, {walk.steps} L2 steps of {walk.step_size:g}, radius "
        f"{walk.radius:g}"
    )
    made = draw(plan, reporter)
    real = dataset.x_test[:2000] if chosen.of_its_own else None
    found = figures(plan, made, judge, real)
    rows = [*plan.above.items(), ("ψ", made), *plan.below.items()]
    pictures.by_class(rows, png, task, plan.caption, dataset.class_names, plan.titles)
    show(task, found, reporter)
    if options.json_file is not None:
        write_json(options.json_file, found)
    reporter.say(f"picture  {png}")
    return found


def check(task: str, chosen: Task, options: ApplyOptions, png: Path) -> None:
    """Refuse, before anything is loaded, what does not fit whatever the data are."""
    require_count("examples", options.examples, minimum=1)
    if options.image and not chosen.images:
        raise FuncrobustError(f"{task} starts from noise: leave --image out, or take sketch")
    pictures.require_png(png)


def extra_options(task: str, chosen: Task, options: ApplyOptions) -> dict[str, Any]:
    """Return those options that are parameters of this task's plan, by name.

    Raises `FuncrobustError` for one that was given and belongs to other tasks alone.
    """
    mine = _parameters(chosen)
    others = {
        name for other in applications.names() for name in _parameters(applications.find(other))
    }
    for name in sorted(others - mine):
        if getattr(options, name, None) != getattr(ApplyOptions, name, None):
            raise FuncrobustError(f"{task} has no use for --{name}: leave it out")
    return {name: getattr(options, name) for name in sorted(mine) if hasattr(options, name)}


def _parameters(task: Task) -> set[str]:
    return set(inspect.signature(task.plan).parameters) - {"scene"}
