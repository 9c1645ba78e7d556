"""What is measured of a network: its accuracies, and what judges see in what it draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from funcrobust import data, judging
from funcrobust.commands.study.drawing import RADIUS, STEP, WAYS, Drawer
from funcrobust.commands.study.options import Study
from funcrobust.core import evaluation
from funcrobust.core.balls.l2 import l2
from funcrobust.core.balls.linf import linf
from funcrobust.core.losses import log_odds
from funcrobust.core.network.functional import Functional
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.perturbations.projected_gradient import psi
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.report.console import Reporter
from funcrobust.running.measuring import evaluating, measure

Point = dict[str, Any]
"""A way, a number of steps, and by judge: Fréchet distance, its spread, agreement, ..."""
KINDS = ("gaussian", "noise")
"""Of starts."""
RESAMPLED = 40
"""Draws of the bootstrap behind a distance's spread."""
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

    network: nn.Module
    real: judging.Seen


@dataclass(frozen=True)
class Bench:
    """What every network is measured with."""

    options: Study
    dataset: data.Dataset
    judges: dict[str, Judge]
    """By name; the first chooses each network's best way to draw."""
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
    options: Study, judges: dict[str, nn.Module], dataset: data.Dataset,
    dtype: torch.dtype | None, reporter: Reporter,
) -> Bench:  # fmt: skip
    """Draw the starts, and show the judges the real images: all test images."""
    seen = {}
    for name, judge in judges.items():
        title = f"{name} judges real images"
        with reporter.track(title, total=len(dataset.x_test), unit="img") as bar:
            seen[name] = Judge(judge, judging.look(judge, dataset.x_test, advance=bar.advance))
    gaussian = GaussianStarts(data.as_float(dataset.x_train), dataset.y_train)
    starts, choosing = (
        draw_starts(options, dataset, gaussian, count, number)
        for number, count in enumerate((options.images, options.choosing))
    )
    return Bench(options, dataset, seen, starts, choosing, dtype, reporter)


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


def score(model: Functional, bench: Bench) -> dict[str, Any]:
    """Accuracies, held-out drift, and for each kind of start what is drawn from it.

    ``"points"`` are all ways and numbers of steps, the starts themselves first; ``"best"`` is the
    one that the first judge would choose by other images, with the spread of its distances;
    ``"stability"`` the largest distance over the numbers of gradient steps, over the least.
    """
    drawer = Drawer(evaluating(model, model.buffers, bench.dtype), model.params)
    found = accuracies(drawer, bench)
    for kind in KINDS:
        choices = [p for p, _ in points(drawer, bench, bench.choosing, kind)[1:]]
        chosen = min(choices, key=bench.distance)
        every = points(drawer, bench, bench.starts, kind)
        place = [(p["way"], p["steps"]) for p, _ in every].index((chosen["way"], chosen["steps"]))
        best, seen = every[place]
        for name, judge in bench.judges.items():
            best["judges"][name]["spread"] = spread(judge.real, seen[name])
        whole = [bench.distance(p) for p, _ in every if p["way"] == "gradient"]
        stability = max(whole) / min(whole)
        found[kind] = {"points": [p for p, _ in every], "best": best, "stability": stability}
    return found


def accuracies(drawer: Drawer, bench: Bench) -> dict[str, Any]:
    """Clean and robust accuracy, and the drift of five L2 steps, on test images at random."""
    options, dataset = bench.options, bench.dataset
    n = options.examples or len(dataset.y_test)
    draw = generator(options.seed, "study/examples", 0, dataset.y_test.device)
    index = torch.randperm(len(dataset.y_test), generator=draw, device=draw.device)[:n]
    x, y = dataset.x_test[index], dataset.y_test[index]
    found: dict[str, Any] = measure(
        drawer.predict, drawer.params, x, y, bench.reporter, ball=linf(8 / 255),
        steps=options.attack_steps, seed=options.seed, title=f"PGD-{options.attack_steps}",
    )  # fmt: skip
    some = max(1, min(500, n // 2))
    five = psi(log_odds(drawer.predict), l2(RADIUS), step_size=STEP, steps=5, targeted=True)
    found["drift"] = evaluation.mean_of(drift(five), drawer.params, x[:some], y[:some])
    return found


def points(
    drawer: Drawer, bench: Bench, starts: Starts, kind: str
) -> list[tuple[Point, dict[str, judging.Seen]]]:
    """Score the starts themselves, and what is drawn from them, way by way."""
    x, wanted = starts.images[kind], starts.wanted
    found = [judged("start", 0, x, wanted, bench)]
    total = len(x) * sum(steps for _, steps in WAYS.values())
    with bench.reporter.track(f"drawing from {kind} starts", total=total, unit="step") as bar:
        for name, (way, _) in WAYS.items():
            found += [
                judged(name, steps, made, wanted, bench)
                for steps, made in way(drawer, x, wanted, bar.advance)
            ]
    return found


def judged(
    way: str, steps: int, made: Tensor, wanted: Tensor, bench: Bench
) -> tuple[Point, dict[str, judging.Seen]]:
    """Fréchet distance to all test images; precision and recall against as many as were made."""
    views = {name: judging.look(judge.network, made) for name, judge in bench.judges.items()}
    figures = {}
    for name, seen in views.items():
        real, n = bench.judges[name].real, min(len(made), COMPARED)
        few, some = (judging.Seen(s.features[:n], s.labels[:n]) for s in (real, seen))
        precision, recall = judging.precision_recall(few, some)
        figures[name] = {
            "frechet": judging.frechet_distance(real, seen), "precision": precision,
            "recall": recall, "agreement": judging.agreement(seen, wanted),
        }  # fmt: skip
    return {"way": way, "steps": steps, "judges": figures}, views


def spread(real: judging.Seen, seen: judging.Seen) -> float:
    """Standard deviation of the Fréchet distance over bootstrap samples of the made images."""
    draw, n = torch.Generator().manual_seed(0), len(seen.features)
    distances = []
    for _ in range(RESAMPLED):
        index = torch.randint(n, (n,), generator=draw).to(seen.features.device)
        again = judging.Seen(seen.features[index], seen.labels[index])
        distances.append(judging.frechet_distance(real, again))
    return float(torch.tensor(distances).std())
