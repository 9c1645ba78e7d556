"""Balls made of balls: what they promise holds along ψ, and ψ's derivative goes through them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import DERIVATIVES, directional_difference, inner, random_direction
from torch.func import grad, vmap

import funcrobust as fr


def square() -> torch.Tensor:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 3:7] = True
    return mask


def balls(x):
    return {
        "steps_of": fr.steps_of(fr.linf(8 / 255), fr.l2(1.0)),
        "masked": fr.masked(fr.l2(1.0), square()),
        "measured": fr.measured(fr.l2(float("inf")), 2, F.avg_pool2d(x.roll(1, 0) * 0.5 + 0.25, 2)),
    }


NAMES = ["steps_of", "masked", "measured"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("derivative", ["adjoint", "unrolled"])
def test_derivative(problem, name, derivative):
    ball = balls(problem.x)[name]
    psi = fr.psi(problem.loss, ball, step_size=0.1, steps=4, derivative=DERIVATIVES[derivative])
    w = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()

    def f(params):
        return (psi(params, problem.x, problem.y) * w).sum()

    direction = random_direction(problem.params)
    exact, numeric = (
        inner(grad(f)(problem.params), direction),
        directional_difference(f, problem.params, direction),
    )
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-5 * abs(exact)


def test_masked_leaks_nothing(problem):
    psi = fr.psi(problem.loss, fr.masked(fr.l2(2.0), square()), step_size=0.3, steps=4)
    moved = (psi(problem.params, problem.x, problem.y) - problem.x).abs()
    assert moved[..., ~square()].max() == 0
    assert moved[..., square()].max() > 0.1


def test_masked_steps_have_the_balls_size(problem):
    psi = fr.psi(problem.loss, fr.masked(fr.l2(2.0), square()), step_size=0.3, steps=1)
    length = (psi(problem.params, problem.x, problem.y) - problem.x).flatten(1).norm(dim=1)
    assert torch.allclose(length, torch.full_like(length, 0.3))


def test_masked_under_vmap_over_masks(problem):
    """A mask of its own for each example, mapped over: closures must be built inside."""
    masks = torch.stack([square().roll(i, 0) for i in range(4)])

    def one(x, y, mask):
        psi = fr.psi(problem.loss, fr.masked(fr.l2(2.0), mask), step_size=0.3, steps=3)
        return psi(problem.params, x[None], y[None])[0]

    each = vmap(one)(problem.x, problem.y, masks)
    whole = fr.psi(
        problem.loss, fr.masked(fr.l2(2.0), masks[:, None]), step_size=0.3, steps=3
    )(problem.params, problem.x, problem.y)  # fmt: skip
    assert (each - whole).abs().max() <= 1e-10


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_measured_keeps_the_measurement(problem, scale):
    ball = fr.measured(fr.l2(float("inf")), scale)
    end = fr.psi(problem.loss, ball, step_size=0.05, steps=4)(problem.params, problem.x, problem.y)
    before, after = F.avg_pool2d(problem.x, scale), F.avg_pool2d(end, scale)
    assert (before - after).abs().max() <= 1e-12
    assert ((end - problem.x).abs().max() > 0.01) == (scale > 1)


def test_measured_projects_orthogonally(problem):
    """The nearest point of an affine set: what is left is orthogonal to what may vary."""
    low = torch.rand(4, 3, 4, 4, dtype=torch.float64) * 0.2 + 0.4
    x = problem.x
    p = fr.measured(fr.unconstrained(bounds=(-9.0, 9.0)), 2, low).project(x, x)
    free = torch.randn_like(x)
    free = free - F.avg_pool2d(free, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert abs(float(((x - p) * free).sum())) <= 1e-10
    assert (F.avg_pool2d(p, 2) - low).abs().max() <= 1e-12


def test_steps_of_takes_one_norm_inside_another(problem):
    ball = fr.steps_of(fr.linf(0.02), fr.l2(1.0))
    one = fr.psi(problem.loss, ball, step_size=0.01, steps=1)
    moved = one(problem.params, problem.x, problem.y) - problem.x
    assert torch.allclose(moved.flatten(1).norm(dim=1), torch.full((4,), 0.01).double())
    many = fr.psi(problem.loss, ball, step_size=1.0, steps=5)
    assert (many(problem.params, problem.x, problem.y) - problem.x).abs().max() <= 0.02 + 1e-12
    backwards = fr.steps_of(fr.l2(1.0), fr.linf(1.0))
    with pytest.raises(fr.FuncrobustError, match="zero derivative"):
        fr.psi(problem.loss, backwards, step_size=0.1, steps=1)


def test_samples_obey(problem):
    for name, ball in balls(problem.x).items():
        if name != "measured":  # over an infinite ball there is nothing to sample
            drawn = ball.sample(problem.x, fr.generator(0, "t"))
            assert (ball.project(drawn, problem.x) - drawn).abs().max() <= 1e-12


def test_refused(problem):
    with pytest.raises(fr.FuncrobustError, match="straight"):
        fr.masked(fr.fourier(), square())
    with pytest.raises(fr.FuncrobustError, match="boolean"):
        fr.masked(fr.l2(1.0), square().double())
    with pytest.raises(fr.FuncrobustError, match="undo each other"):
        fr.measured(fr.masked(fr.l2(1.0), square()), 2)
    for low in (torch.zeros(4, 3, 1, 1), torch.zeros(4, 3, 3, 3)):
        with pytest.raises(fr.FuncrobustError, match="measured over 2x2"):
            fr.measured(fr.l2(1.0), 2, low).project(problem.x, problem.x)
    with pytest.raises(fr.FuncrobustError, match="measured over 3x3"):
        fr.measured(fr.l2(1.0), 3).project(problem.x, problem.x)
    with pytest.raises(fr.FuncrobustError, match="scale"):
        fr.measured(fr.l2(1.0), 0)


def test_composed_balls_know_the_datas_bounds(problem):
    ball = fr.steps_of(fr.l2(1e9, bounds=(-1.0, 1.0)), fr.l2(1.0))
    x = problem.x * 2 - 1
    assert (fr.measured(ball, 2).project(x, x) - x).abs().max() <= 1e-12
