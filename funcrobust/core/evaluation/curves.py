"""How accuracy falls with the radius and with the steps: what one figure at one radius hides.

On a few examples, by `sharp_pgd` of one sharpness. A curve that is not at its end at the radius, or
still falls at the last step, tells that the attack was too weak; one that falls to nothing at twice
the radius, that it reaches what it attacks (Carlini et al. 2019, arXiv:1902.06705, sections 4.4 and
5.3). One run of many steps tells of every smaller count: shorter runs are its beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.accuracy import correct
from funcrobust.core.evaluation.adversaries import sharp_pgd
from funcrobust.core.evaluation.adversary import Run
from funcrobust.core.network.functional import Params, Predict

MULTIPLES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Radii of a curve, in multiples of the ball's own."""

COUNTS = (1, 2, 5, 10, 20, 50)
"""Steps of a curve."""

SHARPNESS = 10.0
"""See `sharp_pgd`."""


class Point(NamedTuple):
    """One point of a curve, as counts, of which an interval can be taken."""

    at: float
    """The radius, in units of the data, or the count of steps."""
    standing: int
    """Examples that are classified right still."""
    examples: int


def steps_to_fall(
    predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run, *, ball: Ball,
    step_size: float, steps: int,
) -> Tensor:  # fmt: skip
    """Tell after how many steps each example is first misclassified: (n,) int64, −1 never.

    ``x`` (n, …) is floating-point, y (n,). The ascent is that of `sharp_pgd` with one sharpness
    from its random start, which is looked at too: 0 is the start. What withstands k steps here
    withstands ``sharp_pgd(..., steps=k)``.
    """
    climber = sharp_pgd(ball, step_size=step_size, steps=steps, sharpness=(SHARPNESS,))
    fell = torch.full_like(y, -1)
    for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
        center = x[rows]
        with torch.no_grad():
            aim = climber.aims(predict(params, center), y[rows])[0]
        state = climber.ascent.init(run.starts(ball.sample, center, run.numbers[rows]))
        for step in range(steps):
            state, right = climber.step(predict, params, state, y[rows], aim, center)
            fell[rows[~right]] = step
            if not right.any():
                break
            state = {name: value[right] for name, value in state.items()}
            rows, center, aim = rows[right], center[right], aim[right]
        else:
            with torch.no_grad():
                right = predict(params, state["x"]).argmax(-1) == y[rows]
            fell[rows[~right]] = steps
    return fell


def over_steps(clean: Tensor, fell: Tensor, counts: Sequence[int] = COUNTS) -> list[Point]:
    """Return the curve over steps.

    ``clean`` (n,) bool is who is classified right without an attack, ``fell`` (n,) is
    what `steps_to_fall` gave, with as many steps as the largest of ``counts``.
    """
    for count in counts:
        require_count("counts", count)
    return [
        Point(count, int((clean & ((fell < 0) | (fell > count))).sum()), len(fell))
        for count in counts
    ]


def over_radius(
    predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run, *, ball: Ball,
    step_size: float, steps: int = 20, multiples: Sequence[float] = MULTIPLES,
) -> list[Point]:  # fmt: skip
    """Return the curve over the radius, with steps in proportion to it.

    ``step_size`` is that at the ball's own radius, and ``multiples`` rise. Balls around one centre
    lie in each other, so that what fell in a smaller one has fallen in a larger, and is not
    attacked again. Empty for a ball that has no radius, other than `linf` and `l2`.
    """
    if not isinstance(ball, Linf | L2) or not 0 < ball.radius < float("inf"):
        return []
    if list(multiples) != sorted(multiples) or min(multiples, default=0.0) < 0:
        raise FuncrobustError(f"multiples must rise from 0 or more, got {tuple(multiples)}")
    right = correct(predict, params, x, y, batch_size=run.batch_size)
    standing = right.nonzero().squeeze(1)
    points = []
    for multiple in multiples:
        if multiple > 0 and len(standing):
            fell = steps_to_fall(
                predict, params, x[standing], y[standing],
                run._replace(numbers=run.numbers[standing]),
                ball=replace(ball, radius=multiple * ball.radius),
                step_size=multiple * step_size, steps=steps,
            )  # fmt: skip
            standing = standing[fell < 0]
        points.append(Point(multiple * ball.radius, len(standing), len(x)))
    return points
