"""Accuracy over radius and steps: against what a linear network's is in closed form."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import Run, attack_all, sharp_pgd
from funcrobust.core.evaluation.curves import (
    COUNTS,
    MULTIPLES,
    Point,
    over_radius,
    over_steps,
    steps_to_fall,
)

EPS, STEP = 0.1, 0.03
BALL = fr.linf(EPS, bounds=None)
N, D = 40, 12


@pytest.fixture
def linear():
    """Logits ±(w·x + b)/2, examples whose margins go from below 0 to above 2·ε·‖w‖₁."""
    draw = torch.Generator().manual_seed(3)
    w = torch.randn(D, generator=draw, dtype=torch.float64)
    params = {"w": w, "b": torch.tensor(0.3, dtype=torch.float64)}

    def predict(params, x):
        margin = x @ params["w"] + params["b"]
        return torch.stack([margin, -margin], dim=-1) / 2

    y = torch.randint(2, (N,), generator=draw)
    wanted = torch.linspace(-0.0505, 2.3, N, dtype=torch.float64) * EPS * w.abs().sum()
    x = torch.randn(N, D, generator=draw, dtype=torch.float64)
    sign = 1.0 - 2.0 * y
    x += ((sign * wanted - (x @ w + 0.3)) / w.square().sum()).unsqueeze(1) * w
    return predict, params, x, y, sign, wanted


def test_accuracy_over_the_radius_is_that_of_the_margins(linear):
    """An L-infinity attack of radius r breaks a margin of at most r·‖w‖₁."""
    predict, params, x, y, _, margin = linear
    points = over_radius(predict, params, x, y, Run(torch.arange(N)), ball=BALL, step_size=EPS / 4)
    reach = params["w"].abs().sum()
    assert points == [
        Point(m * EPS, int((margin > m * EPS * reach).sum()), N) for m in MULTIPLES
    ]  # fmt: skip
    assert len({point.standing for point in points}) == len(points), "each radius breaks some"


def test_steps_to_fall_are_those_of_the_walk_by_hand(linear):
    """Each number moves by a step against w from its start, until the wall of the ball."""
    predict, params, x, y, sign, _ = linear
    run = Run(torch.arange(N), 5, "curves")
    fell = steps_to_fall(predict, params, x, y, run, ball=BALL, step_size=STEP, steps=9)
    start = run.starts(BALL.sample, x, run.numbers) - x
    expected = torch.full((N,), -1)
    for k in reversed(range(10)):
        moved = (start - k * STEP * sign.unsqueeze(1) * params["w"].sign()).clamp(-EPS, EPS)
        margin = sign * ((x + moved) @ params["w"] + 0.3)
        expected[margin < 0] = k
    assert torch.equal(fell, expected)
    assert {-1, 0, 1, 3, 5} <= set(fell.tolist())


def test_a_shorter_run_is_the_beginning_of_a_longer(problem):
    """The same examples stand after k steps as after an attack of k steps alone."""
    model, x = problem.model, problem.x.repeat(6, 1, 1, 1)
    x = (x + 0.3 * torch.rand(x.shape, dtype=x.dtype)).clamp(0, 1)
    y = model.predict(model.params, x).argmax(-1)
    y[0] = (y[0] + 1) % 5
    ball = fr.linf(0.3)
    run = Run(torch.arange(len(y)), 0, "evaluate/it", batch_size=5)
    fell = steps_to_fall(model.predict, model.params, x, y, run, ball=ball, step_size=0.04, steps=9)
    clean = model.predict(model.params, x).argmax(-1) == y
    found = []
    for k in (1, 3, 9):
        attack = sharp_pgd(ball, step_size=0.04, steps=k, sharpness=(10.0,))
        outcome = attack_all(model.predict, model.params, x, y, {"it": attack})
        assert torch.equal(clean & ((fell < 0) | (fell > k)), outcome.robust)
        found.append(Point(k, int(outcome.robust.sum()), len(y)))
    assert over_steps(clean, fell, (1, 3, 9)) == found
    assert found[0].standing > found[2].standing, "the ball is neither too small nor too large"


def test_counts_over_steps():
    fell = torch.tensor([-1, 0, 1, 2, 50, 7])
    clean = torch.tensor([True, True, True, True, True, False])
    assert [p.standing for p in over_steps(clean, fell)] == [3, 2, 2, 2, 2, 1]
    assert [p.at for p in over_steps(clean, fell)] == list(COUNTS)
    assert all(p.examples == 6 for p in over_steps(clean, fell))


def test_a_ball_without_a_radius_has_no_curve_over_it(linear):
    predict, params, x, y, *_ = linear
    run = Run(torch.arange(N))
    for ball in (fr.unconstrained(), fr.linf(0.0)):
        assert over_radius(predict, params, x, y, run, ball=ball, step_size=0.1) == []
    with pytest.raises(FuncrobustError, match="must rise"):
        over_radius(predict, params, x, y, run, ball=BALL, step_size=0.1, multiples=(1, 0.5))


def test_nobody_standing_is_no_error(linear):
    predict, params, x, y, *_ = linear
    points = over_radius(
        predict, params, x, 1 - y, Run(torch.arange(N)), ball=fr.linf(9.0, bounds=None),
        step_size=3.0,
    )  # fmt: skip
    assert points[0].standing < 3
    assert points[-1] == Point(18.0, 0, N)
