"""``apply``: what a robust classifier can draw, each with a picture and a number.

What is peculiar to an application is in its file of `funcrobust.core.applications`; here are the
data, the judge, the picture. An independent network judges. Labels are never those of the test
set where a user would not have them: inpainting, super-resolution and denoising go toward the class
that the classifier itself sees. Several classifiers begin from the same images, so that their rows
can be compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from funcrobust import data, judging
from funcrobust.commands.apply import pictures
from funcrobust.commands.apply.drawing import Figures, draw, figures, show
from funcrobust.commands.apply.options import Apply
from funcrobust.commands.apply.scene import make_scene
from funcrobust.core import applications
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.tasks import Plan, Scene
from funcrobust.report.console import Reporter
from funcrobust.report.records import write_json
from funcrobust.running.catalogue import parameters
from funcrobust.running.classifier import labels, load_all, pick_judge
from funcrobust.running.dataset import load_known, require_same_images
from funcrobust.running.groups import require_heard
from funcrobust.running.judge_names import read_judge_name
from funcrobust.running.machine import pick_device
from funcrobust.running.places import picture_place, say_replaced
from funcrobust.running.processes import processes


def apply(options: Apply, reporter: Reporter) -> Figures:
    """Run one application; write its picture, show its numbers beside the baseline's."""
    task, chosen = options.task, applications.find(options.task)
    if options.image and not chosen.images:
        raise FuncrobustError(f"{task} starts from noise: leave --image out, or take sketch")
    png = picture_place(options.png, f"{task}.png", reporter)
    say_replaced(options.json_file, reporter)
    device = pick_device(options.device)
    loaded = load_all(options.checkpoints, device, reporter, models=options.model, images=options)
    first = loaded[0]
    dataset = load_known(options, first.card, reporter).to(device)
    for other in loaded[1:]:
        require_same_images(other.card, dataset)
    if not chosen.of_its_own:
        _require_opinion(options)
    judge = pick_judge(options.judge, first.name, first.card, device, reporter.progress_callback())
    scenes = [make_scene(chosen.walks, each, dataset, options) for each in loaded]
    if options.image:  # one view of a user's images for all
        scenes = [replace(scene, y=scenes[0].y) for scene in scenes]
    require_heard(options, [scene.walk for scene in scenes])
    plans = {
        label: chosen.plan(scene, **parameters(options))
        for label, scene in zip(labels(loaded), scenes, strict=True)
    }
    _require_one_aim(plans)
    if options.judge not in (None, "none") and all(p.wanted is None for p in plans.values()):
        raise FuncrobustError(
            "--judge does nothing here: a feature is painted, which is no class that it could see"
        )
    announce(plans, scenes, options, reporter)
    made = {label: draw(plan, reporter) for label, plan in plans.items()}
    if not processes().first:
        return {}
    most = max(judging.FEW, *map(len, made.values()))
    real = dataset.x_test[:most] if chosen.of_its_own else None
    rows = {label: _row(label, plans) for label in plans}
    found = figures(
        {rows[label]: plan for label, plan in plans.items()},
        {rows[label]: images for label, images in made.items()}, judge, real, reporter,
    )  # fmt: skip
    show(task, found, reporter)
    if options.json_file is not None:
        write_json(options.json_file, found)
    picture(task, png, plans, made, dataset)  # last: if it fails, the figures are there
    reporter.say(f"picture  {png}")
    return found


def _require_opinion(options: Apply) -> None:
    """Refuse, before it is fetched, a judge that would have nothing to say."""
    if options.judge is not None and read_judge_name(options.judge).kind != "checkpoint":
        raise FuncrobustError(
            f"the judge {options.judge} does not know the data's own classes, and {options.task} "
            "is scored by them alone: name a classifier"
        )


def _require_one_aim(plans: dict[str, Plan]) -> None:
    first, *others = plans.values()
    if not all(torch.equal(first.titles, other.titles) for other in others):
        raise FuncrobustError(
            f"{' and '.join(plans)} would draw different things here, a class and a feature: take "
            "one at a time, or name the --feature for both"
        )


def announce(
    plans: dict[str, Plan], scenes: list[Scene], options: Apply, reporter: Reporter
) -> None:
    """Say how many images are drawn, and how."""
    if options.image:
        height, width = scenes[0].x.shape[-2:]
        reporter.say(f"your images are cut and resized to {width}x{height}")
        for line in aims(options, plans, scenes[0]):
            reporter.say(line)
    for (label, plan), scene in zip(plans.items(), scenes, strict=True):
        reporter.say(f"{options.task}, {label}: {len(plan.start)} images, {scene.walk}")


def aims(options: Apply, plans: dict[str, Plan], scene: Scene) -> list[str]:
    """Say for each of a user's images what is seen in it, where ψ goes, and why there."""
    with torch.no_grad():
        seen = scene.model.predict(scene.model.params, scene.x).softmax(-1)
    names = scene.class_names
    ways = [
        [names[c] for c in plan.y.tolist()] for plan in plans.values() if plan.wanted is not None
    ]
    found = []
    for i, path in enumerate(options.image):
        line = f"{path}: the classifier sees {names[int(scene.y[i])]} ({seen[i].max():.0%})"
        if ways:
            toward = " and ".join(dict.fromkeys(way[i] for way in ways))
            why = "as asked" if options.to else "--to CLASS names another"
            line += f"; ψ goes toward {toward}, {why}"
        found.append(line)
    return found


def picture(
    task: str, png: Path, plans: dict[str, Plan], made: dict[str, Tensor], dataset: data.Dataset
) -> None:
    """Write what each classifier made, a row each, between what is above and below all of them."""
    plan = next(iter(plans.values()))
    drawn = [(_row(label, plans), images) for label, images in made.items()]
    rows = [*plan.above.items(), *drawn, *plan.below.items()]
    said = [each.caption for each in plans.values()]
    if len(set(said)) > 1:
        said = [f"{label}: {each.caption}" for label, each in plans.items()]
    caption = " ".join(dict.fromkeys(said))
    pictures.by_class(rows, png, task, caption, dataset.class_names, plan.titles)


def _row(label: str, plans: dict[str, Plan]) -> str:
    return "ψ" if len(plans) == 1 else f"ψ, {label}"
