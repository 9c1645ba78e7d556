"""A plan carried out: what ψ makes, and its scores beside its baselines'."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust import judging
from funcrobust.core.tasks import BATCH, Plan, Scores
from funcrobust.judging import Judge, Seen
from funcrobust.report.console import Reporter
from funcrobust.running.processes import processes

Figures = dict[str, Scores]
"""Scores by what they are of: the baselines, ψ."""

SPLITS = 10
"""Of the Inception score, as published."""


def draw(plan: Plan, reporter: Reporter) -> Tensor:
    """Walk from the plan's start toward its labels, a part of the images at a time.

    Several processes share the parts.
    """
    here, start, made = processes(), plan.start, torch.zeros_like(plan.start)
    own = range(here.rank * BATCH, len(start), here.size * BATCH)
    total = sum(len(start[first : first + BATCH]) for first in own)
    with reporter.track("drawing", total=total, unit="img") as bar, torch.no_grad():
        for first in own:
            part = slice(first, first + BATCH)
            images = start[part].contiguous(memory_format=torch.channels_last)
            made[part] = plan.psi(part)(plan.params, images, plan.y[part])
            bar.advance(len(images))
    return here.joined(made)


def figures(
    plans: dict[str, Plan], made: dict[str, Tensor], judge: Judge | None, real: Tensor | None,
    reporter: Reporter,
) -> Figures:  # fmt: skip
    """Score the baselines, which are the same for all, and what was made by each plan's name.

    Each by itself and, if there is a judge, by its eyes. With ``real`` images the judge also says
    how near the others come to them as a whole.
    """
    plan = next(iter(plans.values()))
    shown = plan.baselines | made
    found = {name: plans.get(name, plan).score(x) for name, x in shown.items()}
    if judge is None or plan.wanted is None:
        return found
    total = sum(map(len, shown.values())) + (0 if real is None else len(real))
    with reporter.track("judging", total=total, unit="img") as bar:
        seen_real = None if real is None else judging.look(judge, real, advance=bar.advance)
        seen = {name: judging.look(judge, x, advance=bar.advance) for name, x in shown.items()}
    for name, by_judge in seen.items():
        if judge.classifies:
            found[name] = found[name] | {"judge agrees": judging.agreement(by_judge, plan.wanted)}
        if seen_real is not None:
            found[name] = found[name] | _as_a_whole(seen_real, by_judge)
    last = seen[next(reversed(made))]
    if seen_real is not None and (caveat := judging.caveat(seen_real, last)):
        reporter.warn(caveat)
    return found


def _as_a_whole(real: Seen, made: Seen) -> Scores:
    """Return what is said of all the images together, as far as there are enough to say it."""
    found = {}
    if min(len(real.features), len(made.features)) > 1:
        found["Fréchet distance"] = judging.frechet_distance(real, made)
    if made.logits is not None and len(made.logits) >= SPLITS:
        found["Inception score"] = judging.inception_score(made, splits=SPLITS)[0]
    return found


def show(task: str, figures: Figures, reporter: Reporter) -> None:
    """Print the scores, a row for each thing compared."""
    columns = list(dict.fromkeys(name for scores in figures.values() for name in scores))
    rows = [
        (what, *(said(name, scores[name]) if name in scores else "" for name in columns))
        for what, scores in figures.items()
    ]
    if columns:
        reporter.table(task, ("", *columns), rows)


def said(name: str, value: float) -> str:
    """Write a score as its name wants it: a share in percent, a PSNR in dB."""
    if "agrees" in name:
        return f"{value:.0%}"
    return f"{value:.2f} dB" if "PSNR" in name else f"{value:.3g}"
