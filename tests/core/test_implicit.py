"""The derivative of a fixed point, against the long way round."""

from __future__ import annotations

import pytest
import torch
from problems import directional_difference, inner, largest, largest_difference, random_direction
from torch.func import grad, jvp, vjp, vmap

import funcrobust as fr


def contracting(problem, derivative, steps=300):
    """Descend cross-entropy plus 3‖x − ½‖²: strongly convex enough for one fixed point."""

    def loss(params, x, y):
        return problem.loss(params, x, y) + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    return fr.psi(
        loss, fr.unconstrained(), step_size=0.1, steps=steps, targeted=True, derivative=derivative
    )


def functional(psi, x, y, weights):
    return lambda params: (psi(params, x, y) * weights).sum()


@pytest.fixture
def weights(problem):
    return torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()


def test_at_a_fixed_point_it_is_the_adjoint(problem, weights):
    psi = contracting(problem, fr.implicit())
    assert (psi(problem.params, problem.x, problem.y) - problem.x).abs().max() > 0.05
    found = grad(functional(psi, problem.x, problem.y, weights))(problem.params)
    long = contracting(problem, fr.adjoint())
    expected = grad(functional(long, problem.x, problem.y, weights))(problem.params)
    assert max(float(g.norm()) for g in expected.values()) > 1e-3
    assert largest_difference(found, expected) < 1e-5


def test_against_finite_differences(problem, weights):
    value = functional(contracting(problem, fr.implicit()), problem.x, problem.y, weights)
    direction = random_direction(problem.params)
    exact = inner(grad(value)(problem.params), direction)
    numeric = directional_difference(value, problem.params, direction)
    assert abs(exact - numeric) <= 1e-4 * abs(numeric)


def test_the_start_does_not_matter(problem, weights):
    psi = contracting(problem, fr.implicit())
    slope = grad(lambda start: (psi(problem.params, start, problem.y) * weights).sum())
    assert slope(problem.x).abs().max() == 0


def test_per_example_gradients(problem, weights):
    psi = contracting(problem, fr.implicit(), steps=100)

    def one(params, x, y, w):
        return (psi(params, x[None], y[None])[0] * w).sum()

    each = vmap(grad(one), (None, 0, 0, 0))(problem.params, problem.x, problem.y, weights)
    whole = grad(functional(psi, problem.x, problem.y, weights))(problem.params)
    assert largest_difference({k: g.sum(0) for k, g in each.items()}, whole) < 1e-5


def test_a_walk_that_goes_on_is_refused(problem, weights):
    psi = fr.psi(
        problem.loss, fr.l2(float("inf"), bounds=(-1e9, 1e9)), step_size=1e-9, steps=3,
        derivative=fr.implicit(),
    )  # fmt: skip
    with pytest.raises(fr.FuncrobustError, match="fixed point"):
        grad(functional(psi, problem.x, problem.y, weights))(problem.params)


def test_no_second_derivative(problem, weights):
    value = functional(contracting(problem, fr.implicit(), 50), problem.x, problem.y, weights)

    def slope(params):
        return sum(g.square().sum() for g in grad(value)(params).values())

    with pytest.raises(fr.FuncrobustError, match="second derivative"):
        grad(slope)(problem.params)


def test_one_step_is_truncated_1(problem, weights):
    a, b = (
        grad(functional(contracting(problem, derivative, 5), problem.x, problem.y, weights))(
            problem.params
        )
        for derivative in (fr.one_step(), fr.truncated(1))
    )
    assert largest_difference(a, b) == 0


def test_forward_mode_is_reverse_mode(problem, weights):
    psi = contracting(problem, fr.implicit())
    direction = random_direction(problem.params)
    step = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(5)).double()

    def end(params, center):
        return psi(params, problem.x, problem.y, center=center)

    _, tangent = jvp(end, (problem.params, problem.x), (direction, step))
    _, pull = vjp(end, problem.params, problem.x)
    pulled, center_bar = pull(weights)
    forward = float((tangent * weights).sum())
    reverse = inner(pulled, direction) + float((center_bar * step).sum())
    assert abs(forward) > 1e-3
    assert abs(forward - reverse) <= 1e-4 * abs(forward)
    each = vmap(lambda d: jvp(lambda p: end(p, problem.x), (problem.params,), (d,))[1])(
        {k: torch.stack([d, 2 * d]) for k, d in direction.items()}
    )
    assert torch.allclose(2 * each[0], each[1], atol=1e-6)


def test_one_lost_example_is_not_hidden_by_the_others(problem):
    """∂Φ/∂x = I for the last example alone, whose share of the cotangent is small."""
    shares = torch.tensor([0.5, 0.5, 0.5, 0.0]).double().reshape(4, 1, 1, 1)

    def step(params, x, y, center):
        moved = x - 0.4 * (x - 0.5 * params["a"])
        return torch.where(shares > 0, moved, x + 0.0 * params["a"])

    def value(params, share):
        end = fr.implicit()(step, 60, params, problem.x, problem.y, problem.x)
        return (end * torch.tensor([1.0, 1.0, 1.0, share]).reshape(4, 1, 1, 1)).sum()

    params = {"a": torch.tensor(1.0).double()}
    for share in (1.0, 1e-4):
        with pytest.raises(fr.FuncrobustError, match="examples"):
            grad(value)(params, share)
    assert grad(value)(params, 0.0)["a"] == pytest.approx(3 * 192 * 0.5, rel=1e-6)


@pytest.mark.parametrize("coarse", [fr.implicit(rtol=1e-2), fr.implicit(maxiter=1)])
def test_the_solvers_numbers_reach_it(problem, weights, coarse):
    """It stops early where it may, or must."""
    rough, usual, exact = (
        grad(functional(contracting(problem, d, 100), problem.x, problem.y, weights))(
            problem.params
        )
        for d in (coarse, fr.implicit(), fr.implicit(rtol=1e-10))
    )
    assert largest_difference(rough, exact) > 10 * largest_difference(usual, exact)


def test_soft_labels_have_their_derivative(problem):
    """Where labels are probabilities, ψ's end depends on them as in the adjoint."""

    def loss(params, x, y):
        fit = -(y * problem.model.predict(params, x).log_softmax(-1)).sum(-1)
        return fit + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    y = torch.softmax(torch.arange(20.0).double().reshape(4, 5), -1)
    slopes = []
    for derivative in (fr.adjoint(), fr.implicit()):
        psi = fr.psi(
            loss, fr.unconstrained(), step_size=0.1, steps=200, targeted=True, derivative=derivative
        )
        end = lambda y, psi=psi: psi(problem.params, problem.x, y).square().sum()  # noqa: E731
        slopes.append(grad(end)(y))
    assert slopes[0].abs().max() > 1e-4
    assert (slopes[0] - slopes[1]).abs().max() <= 1e-4 * slopes[0].abs().max()


@pytest.mark.parametrize(("steps", "arrived"), [(1, False), (2, False), (6, True)])
def test_one_that_is_still_on_its_way_is_refused(problem, weights, steps, arrived):
    """Each step goes some six tenths of the way: no singular system tells that it goes on."""
    value = functional(contracting(problem, fr.implicit(), steps), problem.x, problem.y, weights)
    ahead = (problem.params,), (random_direction(problem.params),)
    if not arrived:
        with pytest.raises(fr.FuncrobustError, match="of the way is left"):
            grad(value)(problem.params)
        with pytest.raises(fr.FuncrobustError, match="of the way is left"):
            jvp(value, *ahead)
        return
    there = functional(contracting(problem, fr.adjoint()), problem.x, problem.y, weights)
    found, expected = (grad(f)(problem.params) for f in (value, there))
    size = largest(expected.values())
    assert largest_difference(found, expected) <= 0.05 * size
    assert abs(jvp(value, *ahead)[1] - inner(expected, ahead[1][0])) <= 0.05 * size * 10


def test_a_centre_at_the_fixed_point_is_no_sign_of_being_on_the_way(problem, weights):
    psi = contracting(problem, fr.implicit())
    there = psi(problem.params, problem.x, problem.y)
    found, long = (
        grad(lambda p, m=m: (m(p, problem.x, problem.y, center=there) * weights).sum())(
            problem.params
        )
        for m in (psi, contracting(problem, fr.adjoint()))
    )
    assert largest_difference(found, long) < 1e-5
