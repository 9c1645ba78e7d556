"""What is measured of a network: its accuracies, and what judges see in what it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcrobust import data, judging
from funcrobust.checkpoints import Card
from funcrobust.commands.study.drawing import (
    WAYS,
    Drawer,
    Numbers,
    claimed_and,
    every_number,
    l2_preset,
)
from funcrobust.commands.study.options import Study
from funcrobust.core import evaluation
from funcrobust.core.balls.linf import linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import log_odds
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.report.console import Reporter
from funcrobust.running.dataset import Chosen
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.option import written_number
from funcrobust.running.processes import processes

Point = dict[str, Any]
"""A way, a number of steps, and by judge: Fréchet distance, its spread, agreement, ..."""
KINDS = ("gaussian", "noise")
"""Of starts."""
RESAMPLED = 40
"""Draws of the bootstrap behind a distance's spread."""
COPIED = 500
"""Images that are compared with all training images."""
COMPARED = 2000
"""Images of either side that precision and recall take at most: every pair is compared."""


@dataclass(frozen=True)
class Starts:
    """Where drawing starts, and what it is to draw."""

    wanted: Tensor
    """(N,): the classes, in equal numbers."""
    images: dict[str, Tensor]
    """(N, C, H, W) by kind."""


@dataclass(frozen=True)
class Judge:
    """A classifier that made none of the images, and what it sees in the real ones."""

    network: judging.Judge
    real: judging.Seen
    """Test images."""
    known: judging.Seen | None = None
    """Training images, as the first judge sees them."""


@dataclass(frozen=True)
class Bench:
    """What every network is measured with."""

    options: Study
    dataset: data.Dataset
    judges: dict[str, Judge]
    """By name; the first chooses each network's best way to draw."""
    x_train: Tensor
    x_test: Tensor
    """Real images that what is made is compared with: see `compared`."""
    starts: Starts
    choosing: Starts
    """Others, by which that is chosen."""
    dtype: torch.dtype | None
    reporter: Reporter

    def distance(self, point: Point) -> float:
        """Return the first judge's Fréchet distance at a point."""
        found: float = point["judges"][next(iter(self.judges))]["frechet"]
        return found


def make_bench(
    options: Study, judges: Mapping[str, judging.Judge], dataset: data.Dataset,
    dtype: torch.dtype | None, reporter: Reporter,
) -> Bench:  # fmt: skip
    """Draw the starts, and show the judges the real images: as many as `compared` says."""

    def looked(name: str, x: Tensor) -> judging.Seen:
        with reporter.track(f"{name} judges real images", total=len(x), unit="img") as bar:
            return judging.look(judges[name], x, advance=bar.advance)

    x_train, x_test = compared(dataset, options)
    seen = {
        name: Judge(judge, looked(name, x_test), None if i else looked(name, x_train))
        for i, (name, judge) in enumerate(judges.items())
    }
    gaussian = GaussianStarts(dataset.in_memory()[0], dataset.y_train)
    starts, choosing = (
        draw_starts(options, dataset, gaussian, count, number)
        for number, count in enumerate((options.images, options.choosing))
    )
    return Bench(options, dataset, seen, x_train, x_test, starts, choosing, dtype, reporter)


def compared(dataset: data.Dataset, options: Study) -> tuple[Tensor, Tensor]:
    """Return training and test images: ten and two for each that is made, at random.

    At 5000 images these are all that CIFAR-10 has. There are never fewer test images than a Fréchet
    distance needs, and as many training images.
    """
    found = []
    for x, each in zip(dataset.in_memory(), (10, 2), strict=True):
        most = max(judging.FEW, each * options.images)
        if most < len(x):
            draw = generator(options.seed, "study/real", each, x.device)
            x = x[torch.randperm(len(x), generator=draw, device=x.device)[:most].sort().values]
        found.append(x)
    return found[0], found[1]


def draw_starts(
    options: Study, dataset: data.Dataset, gaussian: GaussianStarts, count: int, number: int
) -> Starts:
    """Draw the ``number``-th set of starts."""
    device = dataset.y_test.device
    wanted = torch.arange(count, device=device) % dataset.num_classes
    of_class = gaussian(wanted, generator(options.seed, "study/gaussian", number, device))
    draw = generator(options.seed, "study/noise", number, device)
    noise = torch.rand(of_class.shape, generator=draw, device=device)
    images = {
        kind: x.contiguous(memory_format=torch.channels_last)
        for kind, x in (("gaussian", of_class), ("noise", noise))
    }
    return Starts(wanted, images)


def score(model: Functional, bench: Bench, step: float | None = None) -> dict[str, Any]:
    """Accuracies, held-out drift, and for each kind of start what is drawn from it.

    ``"choices"`` are all ways and numbers of steps, on the images to choose by, the starts
    themselves first; ``"stability"`` is the largest distance over the numbers of gradient steps,
    over the least, there. ``"points"`` are of all images: the starts, what is claimed of every
    network, and the ``"best"``: the one that the first judge chose, with the spread of its
    distances.
    """
    drawer = Drawer(evaluating(model, model.buffers, bench.dtype), model.params, step)
    found = accuracies(drawer, bench)
    for kind in KINDS:
        choices = [k.point for k in looks(drawer, bench, bench.choosing, kind, every_number())]
        chosen = processes().same(min(choices[1:], key=bench.distance))
        wanted = claimed_and(chosen["way"], chosen["steps"])
        every = looks(drawer, bench, bench.starts, kind, wanted)
        best = next(look for look in every if look.is_at(chosen))
        for name, judge in bench.judges.items():
            with bench.reporter.track(f"spread, {name}", total=RESAMPLED, unit="draw") as bar:
                wide = spread(judge.real, best.seen[name], bar.advance)
            best.point["judges"][name]["spread"] = wide
        whole = [bench.distance(point) for point in choices if point["way"] == "gradient"]
        found[kind] = {
            "choices": choices, "points": [look.point for look in every], "best": best.point,
            "stability": max(whole) / min(whole), "copies": copies(best.some, bench),
        }  # fmt: skip
    return found


EPSILON = 8 / 255
"""Radius of the robust accuracy, in L∞."""


def require_linf(options: Study, card: Card) -> None:
    """Refuse to transfer, and then measure, in L∞ what was trained in another norm."""
    if options.trains and card.constraint != "linf":
        raise FuncrobustError(
            f"the checkpoint's ε = {written_number(card.epsilon)} is a radius in "
            f"{card.constraint}, and a study transfers and measures in linf: name another "
            "--checkpoint"
        )


def accuracies(drawer: Drawer, bench: Bench) -> dict[str, Any]:
    """Clean and robust accuracy, and the drift of five L2 steps, on test images at random."""
    options, dataset = bench.options, bench.dataset
    n = options.examples or len(dataset.y_test)
    draw = generator(options.seed, "study/examples", 0, dataset.y_test.device)
    index = torch.randperm(len(dataset.y_test), generator=draw, device=draw.device)[:n]
    x_test = dataset.in_memory()[1]
    images = Chosen(index, x_test[index], dataset.y_test[index])
    found: dict[str, Any] = measure(
        drawer.predict, drawer.params, images, bench.reporter, ball=linf(EPSILON),
        steps=options.attack_steps, seed=options.seed, title=f"PGD-{options.attack_steps}",
    )  # fmt: skip
    some = max(1, min(500, n // 2))
    walk = l2_preset(x_test)._replace(steps=5)
    five = walk.toward(log_odds(drawer.predict), walk.ball)
    found["drift"] = evaluation.mean_of(
        drift(five), drawer.params, images.x[:some], images.y[:some]
    )
    return found


class Look(NamedTuple):
    """What judges see of a way to draw after a number of steps."""

    point: Point
    seen: dict[str, judging.Seen]
    some: Tensor
    """The first `COPIED` images."""

    def is_at(self, point: Point) -> bool:
        """Whether a point is of the same way and number of steps."""
        return all(self.point[key] == point[key] for key in ("way", "steps"))


def looks(
    drawer: Drawer, bench: Bench, starts: Starts, kind: str, numbers: Mapping[str, Numbers]
) -> list[Look]:
    """Score the starts themselves, and what is drawn from them: ``numbers`` of steps by way."""
    here, x, wanted = processes(), starts.images[kind], starts.wanted
    found = [judged("start", 0, x, wanted, bench)]
    rows = here.own(torch.arange(len(x), device=x.device))
    own = x[rows].contiguous(memory_format=torch.channels_last)
    total = len(own) * sum(WAYS[name][1](steps) for name, steps in numbers.items())
    with bench.reporter.track(f"drawing from {kind} starts", total=total, unit="step") as bar:
        for name, marks in numbers.items():
            found += [
                judged(name, steps, here.together(made, len(x)), wanted, bench)
                for steps, made in WAYS[name][0](drawer, own, wanted[rows], marks, bar.advance)
            ]
    return found


def judged(way: str, steps: int, made: Tensor, wanted: Tensor, bench: Bench) -> Look:
    """Fréchet distance to the test images; precision and recall against as many as were made."""
    views = {name: judging.look(judge.network, made) for name, judge in bench.judges.items()}
    figures = {}
    for name, seen in views.items():
        real, n = bench.judges[name].real, min(len(made), COMPARED)
        few, some = (s.part(slice(n)) for s in (real, seen))
        precision, recall = judging.precision_recall(few, some)
        figures[name] = {
            "frechet": judging.frechet_distance(real, seen), "precision": precision,
            "recall": recall,
        }  # fmt: skip
        if bench.judges[name].network.classifies:
            figures[name]["agreement"] = judging.agreement(seen, wanted)
    return Look({"way": way, "steps": steps, "judges": figures}, views, made[:COPIED].clone())


def copies(made: Tensor, bench: Bench) -> dict[str, float]:
    """Compare how near images lie to their nearest training image with how near test images do.

    In the first judge's features and in pixels: the median distance of what was made over that of
    as many test images (a copier's is near 0), and the share of what was made that is nearer than
    all but a hundredth of the test images (0.01 where nothing is copied).
    """
    judge = next(iter(bench.judges.values()))
    n, found = len(made), {}
    assert judge.known is not None
    unseen = judge.real.part(slice(n)).features
    new = judging.look(judge.network, made).features
    spaces = {
        "features": (judge.known.features, new, unseen),
        "pixels": (bench.x_train, made, bench.x_test[:n]),
    }
    with bench.reporter.track("copies", total=2 * len(spaces), unit="search") as bar:

        def distances(known: Tensor, x: Tensor) -> Tensor:
            found = judging.nearest(known, x).distances
            bar.advance()
            return found

        for space, (known, ours, theirs) in spaces.items():
            near, usual = distances(known, ours), distances(known, theirs)
            found[f"{space}, median"] = float(near.median() / usual.median())
            found[f"{space}, nearest"] = float((near < usual.quantile(0.01)).double().mean())
    return found


def spread(real: judging.Seen, seen: judging.Seen, advance: Callable[[int], object]) -> float:
    """Standard deviation of the Fréchet distance over bootstrap samples of the made images."""
    draw, n = torch.Generator().manual_seed(0), len(seen.features)
    distances = []
    for _ in range(RESAMPLED):
        index = torch.randint(n, (n,), generator=draw).to(seen.features.device)
        distances.append(judging.frechet_distance(real, seen.part(index)))
        advance(1)
    return float(torch.tensor(distances).std())
