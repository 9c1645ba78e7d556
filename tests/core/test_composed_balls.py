"""Balls made of balls: what they promise holds along ψ, and ψ's derivative goes through them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from problems import DERIVATIVES, directional_difference, inner, random_direction
from scipy.optimize import minimize
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core import evaluation


def square() -> torch.Tensor:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 3:7] = True
    return mask


def balls(x):
    return {
        "with_steps": fr.with_steps(fr.linf(8 / 255), fr.l2(1.0)),
        "masked": fr.masked(fr.l2(1.0), square()),
        "with_block_means": fr.with_block_means(
            fr.l2(float("inf")), 2, F.avg_pool2d(x.roll(1, 0) * 0.5 + 0.25, 2)
        ),
    }


NAMES = ["with_steps", "masked", "with_block_means"]


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
def test_with_block_means_keeps_the_means(problem, scale):
    ball = fr.with_block_means(fr.l2(float("inf")), scale)
    end = fr.psi(problem.loss, ball, step_size=0.05, steps=4)(problem.params, problem.x, problem.y)
    before, after = F.avg_pool2d(problem.x, scale), F.avg_pool2d(end, scale)
    assert (before - after).abs().max() <= 1e-12
    assert ((end - problem.x).abs().max() > 0.01) == (scale > 1)


def test_with_block_means_projects_orthogonally(problem):
    """The nearest point of an affine set: what is left is orthogonal to what may vary."""
    x, draw = problem.x, torch.Generator().manual_seed(0)
    low = torch.rand(4, 3, 4, 4, generator=draw, dtype=torch.float64) * 0.2 + 0.4
    p = fr.with_block_means(fr.unconstrained(bounds=None), 2, low).project(x, x)
    free = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    free = free - F.avg_pool2d(free, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert abs(float(((x - p) * free).sum())) <= 1e-10
    assert (F.avg_pool2d(p, 2) - low).abs().max() <= 1e-12


def test_steps_of_takes_one_norm_inside_another(problem):
    ball = fr.with_steps(fr.linf(0.02), fr.l2(1.0))
    one = fr.psi(problem.loss, ball, step_size=0.01, steps=1)
    moved = one(problem.params, problem.x, problem.y) - problem.x
    assert torch.allclose(moved.flatten(1).norm(dim=1), torch.full((4,), 0.01).double())
    many = fr.psi(problem.loss, ball, step_size=1.0, steps=5)
    assert (many(problem.params, problem.x, problem.y) - problem.x).abs().max() <= 0.02 + 1e-12
    backwards = fr.with_steps(fr.l2(1.0), fr.linf(1.0))
    with pytest.raises(fr.FuncrobustError, match="zero derivative"):
        fr.psi(problem.loss, backwards, step_size=0.1, steps=1)


def test_samples_obey(problem):
    for name, ball in balls(problem.x).items():
        if name != "with_block_means":  # over an infinite ball there is nothing to sample
            drawn = ball.sample(problem.x, fr.generator(0, "t"))
            assert (ball.project(drawn, problem.x) - drawn).abs().max() <= 1e-12


def test_refused(problem):
    with pytest.raises(fr.FuncrobustError, match=r"straight.*fr\.l2\(radius\)"):
        fr.masked(fr.fourier(), square())
    with pytest.raises(fr.FuncrobustError, match="boolean"):
        fr.masked(fr.l2(1.0), square().double())
    with pytest.raises(fr.FuncrobustError, match="undo each other"):
        fr.with_block_means(fr.masked(fr.l2(1.0), square()), 2)
    for low in (torch.zeros(4, 3, 1, 1), torch.zeros(4, 3, 3, 3)):
        with pytest.raises(fr.FuncrobustError, match="squares of 2x2"):
            fr.with_block_means(fr.l2(1.0), 2, low).project(problem.x, problem.x)
    with pytest.raises(fr.FuncrobustError, match="squares of 3x3"):
        fr.with_block_means(fr.l2(1.0), 3).project(problem.x, problem.x)
    with pytest.raises(fr.FuncrobustError, match="images"):
        fr.with_block_means(fr.l2(1.0), 2).project(torch.rand(4, 8, 8), torch.rand(4, 8, 8))
    for shape in ((5, 1, 8, 8), (7,), (1, 4, 3, 8, 8)):
        with pytest.raises(fr.FuncrobustError, match=r"broadcast.*sizes of 1"):
            fr.masked(fr.l2(1.0), torch.ones(shape).bool()).project(problem.x, problem.x)
    own = fr.masked(fr.linf(1.0), torch.ones(4, 1, 8, 8).bool())
    attack = {"pgd": evaluation.Pgd(own, step_size=0.1)}
    with pytest.raises(fr.FuncrobustError, match="evaluations one mask for all"):
        evaluation.attack_all(
            lambda p, x: x.flatten(1)[:, :2], {}, torch.rand(4, 3, 8, 8),
            torch.zeros(4).long(), attack, numbers=torch.arange(4),
        )  # fmt: skip
    with pytest.raises(fr.FuncrobustError, match="scale"):
        fr.with_block_means(fr.l2(1.0), 0)


def test_composed_balls_know_the_datas_bounds(problem):
    ball = fr.with_steps(fr.l2(1e9, bounds=(-1.0, 1.0)), fr.l2(1.0))
    x = problem.x * 2 - 1
    assert (fr.with_block_means(ball, 2).project(x, x) - x).abs().max() <= 1e-12


def test_composed_balls_know_of_no_bounds_either(problem):
    """A centre far outside any image's values is left where it is."""
    x = problem.x * 9 - 30
    ball = fr.with_block_means(fr.with_steps(fr.l2(1.0, bounds=None), fr.l2(1.0)), 2)
    assert (ball.project(x, x) - x).abs().max() <= 1e-12
    assert ball.sample(x, fr.generator(0, "t")).max() < 0
    with pytest.raises(fr.FuncrobustError, match="outside the ball's bounds"):
        fr.masked(fr.l2(1.0), square()).sample(x, fr.generator(0, "t"))


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_masks_of_features_and_embeddings(shape):
    """Shapes other than images': the mask's own gradient, and nothing outside it."""
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(3, *shape, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(6) < 4
    ball = fr.masked(fr.l2(0.5, bounds=None), mask)
    end = fr.pgd(lambda _, x, __: (x * w).flatten(1).sum(1), ball, step_size=1.0, steps=3)(
        {}, x, torch.zeros(3, dtype=torch.int64)
    )
    step = torch.where(mask, w, 0.0)
    step = 0.5 * step / step.flatten(1).norm(dim=1).reshape(-1, *(1,) * len(shape))
    assert (end - x - step).abs().max() <= 1e-12
    assert torch.equal(end[..., 4:], x[..., 4:])


def test_a_mask_comes_last(problem):
    """A ball that lends its steps to another would step where the mask lets nothing move."""
    hidden = fr.masked(fr.linf(0.1), square())
    with pytest.raises(fr.FuncrobustError, match="come last"):
        fr.with_steps(hidden, fr.l2(1.0))
    with pytest.raises(fr.FuncrobustError, match="undo each other"):
        fr.masked(fr.with_block_means(fr.l2(1.0), 2), square())
    with pytest.raises(fr.FuncrobustError, match=r"7x8 images cannot be cut.*divides both"):
        fr.with_block_means(fr.l2(1.0), 2).steepest(problem.x[..., :7, :])
    assert fr.masked(fr.linf(8 / 255), square()).radius == 8 / 255
    assert fr.rs_fgsm(fr.masked(fr.linf(8 / 255), square()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fr.masked(fr.l2(1.0), torch.tensor([True, False])),
        lambda: fr.with_block_means(fr.l2(1.0), 2, torch.zeros(1, 3, 2, 2)),
    ],
    ids=["masked", "block means"],
)
def test_balls_that_hold_tensors_can_be_compared_and_be_keys(make):
    ball, other = make(), make()
    assert ball != other
    assert ball in {ball: 1}
    assert other not in {ball: 1}


@pytest.mark.parametrize("radius", [0.1, 0.4])
@pytest.mark.parametrize("build", [fr.linf, lambda r: fr.with_steps(fr.linf(r), fr.l2(1.0))])
def test_block_means_in_a_box_are_the_nearest_such_point(build, radius):
    """Against SciPy's own, square by square, the data bounds in the way of some."""
    draw = fr.generator(0, "box")
    x = torch.rand(3, 2, 4, 6, generator=draw, dtype=torch.float64)
    z = x + 0.5 * torch.randn(x.shape, generator=draw, dtype=torch.float64)
    ball = fr.with_block_means(build(radius), 2)
    p = ball.project(z, x)
    assert (F.avg_pool2d(p, 2) - F.avg_pool2d(x, 2)).abs().max() < 1e-12
    assert (p - x).abs().max() <= radius + 1e-12
    assert evaluation.inside(ball, p, x).all()
    for at in [(0, 0), (2, 4)]:
        rows, columns = slice(at[0], at[0] + 2), slice(at[1], at[1] + 2)
        goal, center = (t[1, 1, rows, columns].flatten().numpy() for t in (z, x))
        ends = list(zip((center - radius).clip(0), (center + radius).clip(None, 1), strict=True))
        held = {"type": "eq", "fun": lambda v, c=center: v.mean() - c.mean()}
        nearest = minimize(
            lambda v, g=goal: ((v - g) ** 2).sum(), center, method="SLSQP", bounds=ends,
            constraints=[held], options={"ftol": 1e-14, "maxiter": 500},
        ).x  # fmt: skip
        assert abs(nearest - p[1, 1, rows, columns].flatten().numpy()).max() < 1e-5


def test_block_means_hold_where_images_saturate():
    draw = fr.generator(0, "saturated")
    x = torch.rand(3, 1, 8, 8, generator=draw, dtype=torch.float64).round()
    x[:, :, ::2] = 0.5
    z = x + torch.randn(x.shape, generator=draw, dtype=torch.float64)
    for ball in (fr.l2(2.0), fr.unconstrained()):
        both = fr.with_block_means(ball, 4)
        p = both.project(z, x)
        assert (F.avg_pool2d(p, 4) - F.avg_pool2d(x, 4)).abs().max() < 1e-12
        assert p.min() >= 0
        assert p.max() <= 1
        assert evaluation.inside(both, p, x).all()
    assert torch.autograd.gradcheck(both.project, (z.requires_grad_(), x.requires_grad_()))


def test_means_that_no_point_has_are_come_as_near_as_can_be():
    x = torch.full((1, 1, 2, 2), 0.5)
    ball = fr.with_block_means(fr.linf(0.1), 2, torch.full((1, 1, 1, 1), 0.9))
    assert torch.allclose(ball.project(x, x), torch.tensor(0.6))


def test_an_attack_over_block_means_stays_in_its_ball():
    x = torch.rand(5, 1, 8, 8, generator=fr.generator(0, "five"), dtype=torch.float64) / 2 + 0.25
    w = torch.randn(64, 2, generator=fr.generator(0, "w"), dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    ball = fr.with_block_means(fr.linf(0.1), 2)
    found = fr.pgd(fr.log_odds(lambda w, x: x.flatten(1) @ w["w"]), ball, step_size=0.05, steps=9)
    moved = found({"w": w}, x, y) - x
    assert 0.05 < moved.abs().max() <= 0.1 + 1e-9


def test_block_means_over_a_ball_without_any_end():
    x = torch.rand(2, 1, 4, 4, generator=fr.generator(0, "endless"), dtype=torch.float64)
    z = 5 * x - 2
    ends = {"bounds": None}
    endless = [fr.linf(float("inf"), **ends), fr.l2(float("inf"), **ends), fr.unconstrained(**ends)]
    found = [fr.with_block_means(ball, 2).project(z, x) for ball in endless]
    assert (F.avg_pool2d(found[0], 2) - F.avg_pool2d(x, 2)).abs().max() < 1e-12
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize(
    "ball",
    [
        fr.l2(1.0, bounds=(0.0, math.inf)), fr.unconstrained(bounds=(-math.inf, math.inf)),
        fr.linf(math.inf, bounds=(0.0, math.inf)), fr.linf(math.inf, bounds=(-math.inf, 1.0)),
        fr.linf(math.inf, bounds=None), fr.l2(1.0, bounds=None), fr.linf(0.5, bounds=(0.0, 1.0)),
    ],
    ids=repr,
)  # fmt: skip
def test_block_means_hold_where_the_data_have_no_end(ball):
    """On one side, or on both: every number stays in bounds, and the means are the centre's."""
    draw = torch.Generator().manual_seed(2)
    center = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=draw)
    x = center + 0.7 * torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=draw)
    found = fr.with_block_means(ball, 2).project(x, center)
    means = torch.nn.functional.avg_pool2d(found - center, 2)
    assert means.abs().max() < 1e-10
    least, most = ball.bounds or (-math.inf, math.inf)
    assert least <= found.min()
    assert found.max() <= most


def test_block_means_of_two_scales_are_refused_as_what_they_are():
    ball = fr.with_block_means(fr.l2(1.0), 2)
    with pytest.raises(fr.FuncrobustError, match="give one scale"):
        fr.with_block_means(ball, 4)
