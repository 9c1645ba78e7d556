"""Clean and robust accuracy, with a bar."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.network.functional import (
    Buffers,
    Functional,
    Params,
    Predict,
    autocast,
)
from funcrobust.report.console import Reporter


def measure(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    reporter: Reporter,
    *,
    ball: Ball,
    steps: int,
    seed: int,
    title: str,
    restarts: int = 1,
    step_size: float | None = None,
    batch_size: int = 250,
) -> dict[str, float]:
    """Measure clean and PGD accuracy with a bar; the default step is radius/4 (2/255 of 8/255)."""
    if step_size is None:
        step_size = getattr(ball, "radius", 1.0) / 4
    clean = evaluation.correct(predict, params, x, y)
    with reporter.track(title, total=len(x) * restarts, unit="img") as bar:
        attack = evaluation.Pgd(ball, step_size, steps, restarts, seed)
        robust = evaluation.robust(
            predict, params, x, y, attack, batch_size=batch_size, advance=bar.advance
        )
    return {"clean": float(clean.float().mean()), "robust": float(robust.float().mean())}


def evaluating(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    """Evaluation-mode prediction with the given statistics and precision."""
    return autocast(model.with_buffers(buffers), dtype)
