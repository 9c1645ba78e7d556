"""A plan carried out: what ψ makes, and its scores beside its baselines'."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funcrobust import judging
from funcrobust.core.tasks import BATCH, Plan, Scores
from funcrobust.report.console import Reporter

Figures = dict[str, Scores]
"""Scores by what they are of: the baselines, ψ."""


def draw(plan: Plan, reporter: Reporter) -> Tensor:
    """Walk from the plan's start toward its labels, a part of the images at a time."""
    ends = []
    start = plan.start
    with reporter.track("drawing", total=len(start), unit="img") as bar, torch.no_grad():
        for first in range(0, len(start), BATCH):
            part = slice(first, first + BATCH)
            images = start[part].contiguous(memory_format=torch.channels_last)
            ends.append(plan.psi(part)(plan.params, images, plan.y[part]))
            bar.advance(len(images))
    return torch.cat(ends)


def figures(plan: Plan, made: Tensor, judge: nn.Module | None, real: Tensor | None) -> Figures:
    """Score the baselines and what was made, each by itself and, if there is a judge, by its eyes.

    With ``real`` images the judge also says how near the others come to them as a whole.
    """
    seen_real = None if judge is None or real is None else judging.look(judge, real)

    def scores(x: Tensor) -> Scores:
        found = plan.score(x)
        if judge is None or plan.wanted is None:
            return found
        seen = judging.look(judge, x)
        found = found | {"judge agrees": judging.agreement(seen, plan.wanted)}
        if seen_real is not None and len(x) > 1:
            found["Fréchet distance"] = judging.frechet_distance(seen_real, seen)
        return found

    return {name: scores(x) for name, x in {**plan.baselines, "ψ": made}.items()}


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
