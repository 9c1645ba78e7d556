"""Clean and robust accuracy."""

from __future__ import annotations

import torch

from funcrobust.core import evaluation
from funcrobust.core.attacks import Attack
from funcrobust.core.balls.ball import Ball
from funcrobust.core.evaluation.adversary import AT_ONCE
from funcrobust.core.images import as_float
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import (
    Buffers,
    Functional,
    Params,
    Predict,
    autocast,
)
from funcrobust.report.console import Reporter
from funcrobust.running.dataset import Chosen
from funcrobust.running.processes import Processes, processes


def measure(
    predict: Predict,
    params: Params,
    images: Chosen,
    reporter: Reporter,
    *,
    ball: Ball,
    steps: int,
    seed: int,
    title: str,
    batch_size: int = AT_ONCE,
) -> dict[str, float]:
    """Measure, with a bar, the shares of the images that are classified right.

        clean    without an attack
        robust   under PGD of ``steps`` steps of radius/4 (2/255 of 8/255), too
        worst    and under sharp PGD of as many from each of its starts as well

    PGD can be blind where a gradient is masked; more restarts of it are as blind. Sharp PGD takes
    other ways, and only on the images that withstood. Several processes share the images; all of
    them must call this.
    """
    here, part = _shared(images)
    step_size = getattr(ball, "radius", 1.0) / 4
    adversaries: dict[str, evaluation.Adversary] = {
        "robust": evaluation.Pgd(ball, step_size, steps),
        "worst": evaluation.sharp_pgd(ball, step_size=step_size, steps=steps),
    }
    with reporter.track(title, total=len(part.y) * len(adversaries), unit="img") as bar:
        outcome = evaluation.attack_all(
            predict, params, part.x, part.y, adversaries, numbers=part.places, seed=seed,
            batch_size=batch_size, advance=bar.advance,
        )  # fmt: skip
    fell_to = here.together(outcome.fell_to, len(images.y))
    outcome = outcome._replace(fell_to=fell_to)
    which = {"clean": outcome.clean, "robust": outcome.after(1), "worst": outcome.robust}
    return {name: float(right.float().mean()) for name, right in which.items()}


def withstood(
    predict: Predict, params: Params, images: Chosen, attack: Attack, *, seed: int,
    batch_size: int = AT_ONCE,
) -> float:  # fmt: skip
    """Measure the share of the images that is classified right after ``attack``, once each.

    Whether or not it was before: a network that has overfitted to an attack may know x̂, and not x.
    Several processes share the images, as in `measure`.
    """
    here, part = _shared(images)
    run = evaluation.Run(part.places, seed, "withstood", batch_size)
    x = as_float(part.x)
    x_hat = evaluation.adversary_of(attack, cross_entropy)(predict, params, x, part.y, run)
    with torch.no_grad():
        right = evaluation.correct(predict, params, x_hat, part.y, batch_size=batch_size)
    return float(here.together(right, len(images.y)).float().mean())


def _shared(images: Chosen) -> tuple[Processes, Chosen]:
    """Return who share the images, and those that are this process's."""
    here = processes() if len(images.y) >= processes().size else Processes()
    own = here.own(torch.arange(len(images.y), device=images.y.device))
    return here, Chosen(*(rows[own] for rows in images))


def evaluating(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    """Evaluation-mode prediction with the given statistics and precision."""
    return autocast(model.with_buffers(buffers), dtype)
