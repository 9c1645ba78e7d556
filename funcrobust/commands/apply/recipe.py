"""``apply``: what one robust classifier can draw, each with a picture and a number.

What is peculiar to an application is in its file of `funcrobust.core.applications`; here are the
data, the judge, the picture. An independent network judges. Labels are never those of the test
set where a user would not have them: inpainting and super-resolution go toward the class that the
classifier itself sees.
"""

from __future__ import annotations

from pathlib import Path

from funcrobust import judging
from funcrobust.commands.apply import pictures
from funcrobust.commands.apply.drawing import Figures, draw, figures, show
from funcrobust.commands.apply.options import Apply
from funcrobust.commands.apply.scene import make_scene
from funcrobust.core import applications
from funcrobust.core.errors import FuncrobustError
from funcrobust.report.console import Reporter
from funcrobust.report.records import write_json
from funcrobust.running.catalogue import parameters
from funcrobust.running.classifier import load_classifier, pick_judge
from funcrobust.running.dataset import load_known
from funcrobust.running.judge_names import read_judge_name
from funcrobust.running.machine import pick_device


def apply(options: Apply, reporter: Reporter) -> Figures:
    """Run one application; write its picture, show its numbers beside the baseline's."""
    task, chosen = options.task, applications.find(options.task)
    if options.image and not chosen.images:
        raise FuncrobustError(f"{task} starts from noise: leave --image out, or take sketch")
    png = options.png or Path(f"{task}.png")
    device = pick_device(options.device)
    name, card, module, _ = load_classifier(options.checkpoint, device, model=options.model)
    dataset = load_known(options, card, reporter).to(device)
    if not chosen.of_its_own:
        _require_opinion(options)
    judge = pick_judge(options.judge, name, card, device)
    scene = make_scene(chosen.walks, module, dataset, options, reporter)
    plan = chosen.plan(scene, **parameters(options))
    walk = scene.walk
    reporter.say(
        f"{task}: {len(plan.start)} images, {walk.steps} L2 steps of {walk.step_size:g}, radius "
        f"{walk.radius:g}"
    )
    made = draw(plan, reporter)
    real = dataset.x_test[: max(judging.FEW, len(made))] if chosen.of_its_own else None
    found = figures(plan, made, judge, real, reporter)
    rows = [*plan.above.items(), ("ψ", made), *plan.below.items()]
    pictures.by_class(rows, png, task, plan.caption, dataset.class_names, plan.titles)
    show(task, found, reporter)
    if options.json_file is not None:
        write_json(options.json_file, found)
    reporter.say(f"picture  {png}")
    return found


def _require_opinion(options: Apply) -> None:
    """Refuse, before it is fetched, a judge that would have nothing to say."""
    if options.judge is not None and read_judge_name(options.judge).kind != "checkpoint":
        raise FuncrobustError(
            f"the judge {options.judge} does not know the data's own classes, and {options.task} "
            "is scored by them alone: name a classifier"
        )
