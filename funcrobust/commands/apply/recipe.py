"""``apply``: what one robust classifier can draw, each with a picture and a number.

Every application is a ψ of `funcrobust.core.applications`; here are its data, baseline and score.
An independent classifier judges. Labels are never those of the test set where a user would not have
them: inpainting and super-resolution go toward the class that the classifier itself sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funcrobust import checkpoints, data
from funcrobust import judging as generative
from funcrobust.checkpoints import Card
from funcrobust.commands.apply.options import Apply
from funcrobust.commands.apply.pictures import drawn, flattened, read_images
from funcrobust.core import applications as apps
from funcrobust.core.applications import Walk
from funcrobust.core.balls.composed import with_block_means
from funcrobust.core.balls.l2 import l2
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import Loss, cross_entropy
from funcrobust.core.network.functional import Functional, functionalize
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.randomness import generator
from funcrobust.core.starts import class_conditional_gaussian
from funcrobust.files import atomic_write
from funcrobust.models import head, representation
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import JUDGE, STRONGEST, default_checkpoint
from funcrobust.running.dataset import load_known
from funcrobust.running.machine import pick_device, to_device


@dataclass(frozen=True)
class Scene:
    """All that a task works with: the classifier, the judge, and N images with their labels."""

    options: Apply
    model: Functional
    module: nn.Module
    judge: nn.Module | None
    dataset: data.Dataset
    x: Tensor
    y: Tensor
    walk: Walk
    reporter: Reporter

    @property
    def loss(self) -> Loss:
        """What ψ descends."""
        return cross_entropy(self.model.predict)

    def sees(self, x: Tensor) -> Tensor:
        """Classify with the classifier that draws."""
        with torch.no_grad():
            parts = [self.model.predict(self.model.params, b).argmax(-1) for b in x.split(_BATCH)]
        return torch.cat(parts)

    def run(self, task: Callable[[slice], Perturbation], start: Tensor, y: Tensor) -> Tensor:
        """Walk from ``start`` toward y in batches; ``task`` builds ψ for a slice of the images."""
        ends = []
        with self.reporter.track("drawing", total=len(start), unit="img") as bar, torch.no_grad():
            for first in range(0, len(start), _BATCH):
                part = slice(first, first + _BATCH)
                images = start[part].contiguous(memory_format=torch.channels_last)
                ends.append(task(part)(self.model.params, images, y[part]))
                bar.advance(len(images))
        return torch.cat(ends)

    def judged(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return how often the judge agrees, if there is one."""
        if self.judge is None:
            return {}
        return {"judge agrees": generative.agreement(generative.look(self.judge, x), y)}


_BATCH = 100

Figures = dict[str, dict[str, float]]
"""Scores by what they are of: the baseline, ψ, ...."""


@dataclass(frozen=True)
class Drawing:
    """What a task made: rows of pictures, scores, and a sentence on what is shown."""

    rows: list[tuple[str, Tensor]]
    figures: Figures
    caption: str


def generation(scene: Scene) -> Drawing:
    """From class-conditional Gaussian noise toward each class."""
    images = data.as_float(scene.dataset.x_train)
    wanted = scene.y
    draw = generator(scene.options.seed, "generate", 0, wanted.device)
    starts = class_conditional_gaussian(images, scene.dataset.y_train, wanted, draw)
    made = scene.run(lambda _: apps.generation(scene.loss, scene.walk), starts, wanted)
    figures: Figures = {"start": {}, "ψ": {}}
    if scene.judge is not None:
        real = generative.look(scene.judge, scene.dataset.x_test[:2000])
        for name, images in (("start", starts), ("ψ", made)):
            seen = generative.look(scene.judge, images)
            figures[name]["judge agrees"] = generative.agreement(seen, wanted)
            if len(made) > 1:
                figures[name]["Fréchet distance"] = generative.frechet_distance(real, seen)
    return Drawing(
        [("Gaussian start", starts), ("ψ", made)], figures,
        "From noise with a class's mean and covariance, toward the class above.",
    )  # fmt: skip


def inpainting(scene: Scene) -> Drawing:
    """A square hole, first filled with the mean colour around it."""
    hole = centred_square(scene.x, scene.options.hole)
    filled = apps.mean_filled(scene.x, hole)
    made = scene.run(
        lambda _: apps.inpainting(scene.loss, hole, scene.walk), filled, toward(scene, filled)
    )
    figures = {
        name: {"PSNR in the hole": psnr(image[..., hole], scene.x[..., hole])}
        | scene.judged(image, aimed(scene))
        for name, image in (("mean fill", filled), ("ψ", made))
    }
    black = torch.where(hole, 0.0, scene.x)
    return Drawing(
        [("input", black), ("mean fill", filled), ("ψ", made), ("truth", scene.x)], figures,
        f"ψ toward {aim(scene, 'the filled image')}. Pixels outside the hole are untouched.",
    )  # fmt: skip


def super_resolution(scene: Scene) -> Drawing:
    """From the means over scale×scale squares."""
    scale = scene.options.scale
    if any(size % scale for size in scene.x.shape[-2:]):
        raise FuncrobustError(
            f"scale {scale} does not divide images of {'x'.join(map(str, scene.x.shape[-2:]))}"
        )
    low = F.avg_pool2d(scene.x, scale)
    smooth = apps.bicubic(low, scale)
    y = toward(scene, smooth)
    ball = with_block_means(l2(scene.walk.radius), scale, low)
    back = ball.project(smooth, smooth)  # ψ of no steps
    made = scene.run(
        lambda p: apps.super_resolution(scene.loss, low[p], scale, scene.walk), smooth, y
    )
    figures = {
        name: {"PSNR": psnr(image, scene.x)} | scene.judged(image, aimed(scene))
        for name, image in (("bicubic", smooth), ("bicubic, consistent", back), ("ψ", made))
    }
    return Drawing(
        [("input", low.repeat_interleave(scale, -1).repeat_interleave(scale, -2)),
         ("bicubic", smooth), ("ψ", made), ("truth", scene.x)], figures,
        f"{scale} times enlarged. ψ toward {aim(scene, 'the bicubic image')}, among the images "
        "with the input's averages.",
    )  # fmt: skip


def translation(scene: Scene) -> Drawing:
    """Images of one class toward another."""
    classes = scene.dataset.num_classes
    target = wanted_class(scene)
    wanted = (scene.y + 1) % classes if target is None else torch.full_like(scene.y, target)
    made = scene.run(lambda _: apps.translation(scene.loss, scene.walk), scene.x, wanted)
    figures = {
        "before": scene.judged(scene.x, wanted), "ψ": scene.judged(made, wanted),
    }  # fmt: skip
    names = scene.dataset.class_names
    toward = "the next class" if target is None else names[target]
    return Drawing(
        [("image", scene.x), ("ψ", made)], figures,
        f"Toward {toward}" + (", in the order above." if target is None else "."),
    )  # fmt: skip


def sketch(scene: Scene) -> Drawing:
    """From flat blocks of four colours, or the user's own drawing, toward a class."""
    own = bool(scene.options.image)
    start = scene.x if own else flattened(scene.x)
    made = scene.run(lambda _: apps.sketch(scene.loss, scene.walk), start, scene.y)
    figures = {"sketch": scene.judged(start, scene.y), "ψ": scene.judged(made, scene.y)}
    rows = [("sketch", start), ("ψ", made)]
    if not own:
        rows.append(("what was sketched", scene.x))
    return Drawing(rows, figures, "From flat blocks of colour toward the class.")


def painting(scene: Scene) -> Drawing:
    """One coordinate of the representation, raised within a patch."""
    where = centred_square(scene.x, scene.options.hole)
    network = functionalize(representation(scene.module)).to(scene.x.device)
    width = network.predict(network.params, scene.x[:1]).shape[1]
    target = wanted_class(scene)
    feature = scene.options.feature
    if feature is None:
        feature = telling_feature(scene.module, 0 if target is None else target)
    if not 0 <= feature < width:
        raise FuncrobustError(f"feature must be below {width}, got {feature}")
    chosen = torch.full_like(scene.y, feature)
    painted = replace(scene, model=network)
    made = painted.run(lambda _: apps.painting(network.predict, where, scene.walk), scene.x, chosen)

    def figures(x: Tensor) -> dict[str, float]:
        with torch.no_grad():
            value = float(network.predict(network.params, x)[:, feature].mean())
        outside = float((x - scene.x)[..., ~where].abs().max())
        return {f"feature {feature}": value, "change outside": outside}

    return Drawing(
        [("image", scene.x), (f"feature {feature}", made)],
        {"image": figures(scene.x), "ψ": figures(made)},
        f"Feature {feature} of {width} raised within the central square.",
    )


TASKS: dict[str, Callable[[Scene], Drawing]] = {
    "generation": generation, "inpainting": inpainting, "super-resolution": super_resolution,
    "translation": translation, "sketch": sketch, "painting": painting,
}  # fmt: skip


def apply(options: Apply, reporter: Reporter) -> Figures:
    """Run one application; write its picture, show its numbers beside the baseline's."""
    task = options.task
    png = options.png or Path(f"{task}.png")
    scene = make_scene(task, options, reporter)
    walk = scene.walk
    reporter.say(
        f"{task}: {len(scene.x)} images, {walk.steps} L2 steps of {walk.step_size:g}, radius "
        f"{walk.radius:g}"
    )
    drawing = TASKS[task](scene)
    drawn(drawing.rows, png, task, drawing.caption, scene.dataset.class_names, scene.y)
    show(task, drawing.figures, reporter)
    if options.json_file is not None:
        atomic_write(options.json_file, json.dumps(drawing.figures, indent=2) + "\n")
    reporter.say(f"picture  {png}")
    return drawing.figures


def make_scene(task: str, options: Apply, reporter: Reporter) -> Scene:
    """Load everything, and find what does not fit before any work is done."""
    device = pick_device(options.device)
    name = options.checkpoint or default_checkpoint(STRONGEST)
    module, card = checkpoints.load(name, model=options.model)
    dataset = load_known(options, card, reporter).to(device)
    judge = pick_judge(options.judge, name, card, device)
    model = to_device(functionalize(module), device)
    preset = apps.walk_for(task, dataset.image_shape)
    given = (options.radius, options.step_size, options.steps)
    walk = Walk(*(p if g is None else g for p, g in zip(preset, given, strict=True)))  # type: ignore[arg-type]
    n = options.examples
    if options.image:
        x = read_images(options.image, dataset.image_shape).to(device)
        height, width = x.shape[-2:]
        reporter.say(f"your images are cut and resized to {width}x{height}; the class over each is")
        reporter.say("the one that the classifier sees in it")
        y = torch.zeros(len(x), dtype=torch.int64, device=device)
    elif task == "generation":
        y = torch.arange(n, device=device) % dataset.num_classes
        x = torch.zeros(n, *dataset.image_shape, device=device)
    else:
        x, y = data.as_float(dataset.x_test[:n]), dataset.y_test[:n]
    scene = Scene(options, model, module, judge, dataset, x, y, walk, reporter)
    target = wanted_class(scene)
    if target is not None and task == "translation" and not options.image:
        others = (y != target).nonzero()[:, 0]
        if len(others) == 0:
            raise FuncrobustError("all these images are of that class already: ask for more")
        scene = replace(scene, x=x[others], y=y[others])
    if options.image:
        scene = replace(scene, y=scene.sees(x))
    if target is not None and task in ("generation", "sketch"):
        scene = replace(scene, y=torch.full_like(y, target))
    return scene


def pick_judge(name: str | None, drawer: str, card: Card, device: torch.device) -> nn.Module | None:
    """Load the independent classifier; the shipped one where it knows the same images."""
    if name == "none" or (name is None and JUDGE not in checkpoints.shipped()):
        return None
    judge, its_card = checkpoints.load(name or JUDGE)
    same = (its_card.image_shape, its_card.num_classes) == (card.image_shape, card.num_classes)
    if name is None and not (same and its_card.dataset == card.dataset != "unknown"):
        return None
    if not same:
        raise FuncrobustError(f"the judge {name} knows other images or classes than {drawer}")
    return judge.to(device)


def toward(scene: Scene, x: Tensor) -> Tensor:
    """Return the class asked for, or else those that the classifier itself sees in x."""
    target = wanted_class(scene)
    return scene.sees(x) if target is None else torch.full_like(scene.y, target)


def aimed(scene: Scene) -> Tensor:
    """Return the class asked for, or else the true ones: what the judge is to agree with."""
    target = wanted_class(scene)
    return scene.y if target is None else torch.full_like(scene.y, target)


def aim(scene: Scene, seen: str) -> str:
    """Say where ψ goes."""
    target = wanted_class(scene)
    if target is None:
        return f"the class that the classifier sees in {seen}"
    return str(scene.dataset.class_names[target])


def wanted_class(scene: Scene) -> int | None:
    """Read ``--to``: a class by name or number."""
    to, names = scene.options.to, scene.dataset.class_names
    if to is None:
        return None
    if to in names:
        return names.index(to)
    if to.isdecimal() and int(to) < len(names):
        return int(to)
    raise FuncrobustError(f"unknown class {to!r}: choose from {', '.join(names)}, or a number")


def centred_square(x: Tensor, share: float) -> Tensor:
    """Return a mask (H, W), true in a centred square of ``share`` of each side."""
    height, width = x.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    rows, columns = (min(max(1, round(share * size)), size - 1) for size in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[top : top + rows, left : left + columns] = True
    return mask


def telling_feature(module: nn.Module, target: int) -> int:
    """Return the feature with the largest weight for a class in the last linear layer."""
    return int(head(module).weight[target].argmax())


def psnr(made: Tensor, truth: Tensor) -> float:
    """Mean over images of 10·log₁₀(1/MSE), in dB, as torchmetrics computes it."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    every = tuple(range(1, made.ndim))
    return float(peak_signal_noise_ratio(made, truth, data_range=1.0, dim=every))


def show(task: str, figures: Figures, reporter: Reporter) -> None:
    """Print the scores, a row for each thing compared."""
    columns = list(dict.fromkeys(name for scores in figures.values() for name in scores))
    rows = [
        (what, *(_said(name, scores[name]) if name in scores else "" for name in columns))
        for what, scores in figures.items()
    ]
    if columns:
        reporter.table(task, ("", *columns), rows)


def _said(name: str, value: float) -> str:
    if "agrees" in name:
        return f"{value:.0%}"
    return f"{value:.2f} dB" if "PSNR" in name else f"{value:.3g}"
