"""The loss algebra: sums, means, and operators inside operators."""

from __future__ import annotations

import pytest
import torch
from conftest import directional_difference, inner, largest_difference, random_direction
from torch.func import grad

import funcrobust as fr


def test_the_designs_example_runs_and_is_exact(problem):
    """DESIGN.md's composition, differentiated as one, against finite differences."""
    loss = fr.cross_entropy(problem.model.predict)
    pgd = fr.pgd(loss, fr.linf(8 / 255), step_size=2 / 255, steps=3)
    psi = fr.psi(loss, fr.l2(float("inf")), step_size=0.1, steps=4, targeted=True)
    fixed = pgd(problem.params, problem.x, problem.y)
    held = fr.adversarial(loss, lambda params, start, y, *, center=None: fixed)
    total = fr.weighted_sum((1.0, held), (10.0, fr.cure(loss, h=3.0)), (0.5, fr.drift(psi)))
    objective = fr.mean(total)
    direction = random_direction(problem.params)
    exact = inner(grad(objective)(problem.params, problem.x, problem.y), direction)
    numeric = directional_difference(
        lambda p: objective(p, problem.x, problem.y), problem.params, direction
    )
    assert abs(exact - numeric) <= 1e-6 * abs(exact)
    # The attack itself is held constant, so swapping it for its own result changes no gradient.
    live = fr.weighted_sum(
        (1.0, fr.adversarial(loss, pgd)), (10.0, fr.cure(loss, h=3.0)), (0.5, fr.drift(psi))
    )
    found = grad(fr.mean(live))(problem.params, problem.x, problem.y)
    expected = grad(objective)(problem.params, problem.x, problem.y)
    assert largest_difference(found, expected) <= 1e-12


def test_weighted_sum_is_the_sum(problem):
    margin = fr.margin(problem.model.predict)
    total = fr.weighted_sum((2.0, problem.loss), (0.5, margin), (0.0, None))
    arguments = (problem.params, problem.x, problem.y)
    assert torch.allclose(
        total(*arguments), 2 * problem.loss(*arguments) + 0.5 * margin(*arguments)
    )
    assert torch.allclose(fr.mean(total)(*arguments), total(*arguments).mean())


def test_operators_nest(problem):
    """CURE of an adversarial loss is curvature, not zero: δ is held constant, x is not."""
    pgd = fr.pgd(problem.loss, fr.linf(0.03), step_size=0.01, steps=2)
    robust = fr.adversarial(problem.loss, pgd)
    assert (fr.cure(robust, 1.0)(problem.params, problem.x, problem.y) > 1e-4).all()
    delta = pgd(problem.params, problem.x, problem.y) - problem.x
    found = fr.input_gradient(robust)(problem.params, problem.x, problem.y)
    expected = fr.input_gradient(problem.loss)(problem.params, problem.x + delta, problem.y)
    assert (found - expected).abs().max() <= 1e-12
    moved = fr.pgd(robust, fr.l2(1.0), step_size=0.1, steps=2)(problem.params, problem.x, problem.y)
    assert (moved - problem.x).abs().max() > 1e-3


def test_adversarial_from_a_random_start(problem):
    ball = fr.linf(0.03)
    start = ball.sample(problem.x, fr.generator(0, "start"))
    fgsm = fr.fgsm(problem.loss, ball, step_size=0.04)
    found = fr.adversarial(problem.loss, fgsm, start=start)(problem.params, problem.x, problem.y)
    end = fgsm(problem.params, start, problem.y, center=problem.x)
    assert torch.allclose(found, problem.loss(problem.params, end, problem.y))
    assert (found > problem.loss(problem.params, problem.x, problem.y)).all()


def test_bad_sums(problem):
    with pytest.raises(fr.FuncrobustError, match="weight"):
        fr.weighted_sum((-1.0, problem.loss))
    with pytest.raises(fr.FuncrobustError, match="positive weight"):
        fr.weighted_sum((0.0, problem.loss))
    reduced = fr.weighted_sum((1.0, problem.loss), (1.0, fr.mean(problem.loss)))
    with pytest.raises(fr.FuncrobustError, match="per example"):
        reduced(problem.params, problem.x, problem.y)
