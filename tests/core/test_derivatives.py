"""One contract for every way of differentiating ψ: grad, vjp, vmap and jvp, in float64.

The iteration contracts to a fixed point, so that every mode has something true to be compared with:
the exact ones finite differences of ψ, the truncated ones finite differences of the steps they see,
the implicit one both.
"""

from __future__ import annotations

import pytest
import torch
from problems import (
    DERIVATIVES,
    directional_difference,
    inner,
    largest,
    largest_difference,
    random_direction,
)
from torch.func import grad, jvp, vjp, vmap

import funcrobust as fr

MODES = list(DERIVATIVES)
STEPS = 200  # a contraction by 0.9 or so: what is left to move is below 1e-8
SEEN = {"truncated": 3, "one_step": 1}


def make(problem, derivative, steps=STEPS):
    def loss(params, x, y):
        return problem.loss(params, x, y) + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    return fr.psi(
        loss, fr.unconstrained(), step_size=0.1, steps=steps, targeted=True,
        derivative=DERIVATIVES[derivative] if isinstance(derivative, str) else derivative,
    )  # fmt: skip


@pytest.fixture
def weights(problem):
    return torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()


@pytest.mark.parametrize("mode", MODES)
def test_gradient(problem, weights, mode):
    """Truncated modes are exact for the steps they see, from the iterate before them."""
    seen = SEEN.get(mode, STEPS)
    held = make(problem, "unrolled", STEPS - seen)(problem.params, problem.x, problem.y)
    rest = make(problem, "unrolled", seen)
    psi = make(problem, mode)
    found = grad(lambda p: (psi(p, problem.x, problem.y) * weights).sum())(problem.params)
    direction = random_direction(problem.params)
    numeric = directional_difference(
        lambda p: (rest(p, held, problem.y, center=problem.x) * weights).sum(),
        problem.params, direction,
    )  # fmt: skip
    exact = inner(found, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= (1e-4 if mode == "implicit" else 1e-6) * abs(exact)


@pytest.mark.parametrize("mode", MODES)
def test_forward_mode_is_reverse_mode(problem, weights, mode):
    psi = make(problem, mode)
    direction = random_direction(problem.params)
    step = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(5)).double()

    def end(params, center):
        return psi(params, problem.x, problem.y, center=center)

    _, pull = vjp(end, problem.params, problem.x)
    _, tangent = jvp(end, (problem.params, problem.x), (direction, step))
    pulled, center_bar = pull(weights)
    forward = float((tangent * weights).sum())
    reverse = inner(pulled, direction) + float((center_bar * step).sum())
    assert abs(forward) > 1e-3
    assert abs(forward - reverse) <= (1e-4 if mode == "implicit" else 1e-8) * abs(forward)


@pytest.mark.parametrize("mode", MODES)
def test_per_example_gradients(problem, weights, mode):
    psi = make(problem, mode, steps=60)

    def one(params, x, y, w):
        return (psi(params, x[None], y[None])[0] * w).sum()

    each = vmap(grad(one), (None, 0, 0, 0))(problem.params, problem.x, problem.y, weights)
    whole = grad(lambda p: (psi(p, problem.x, problem.y) * weights).sum())(problem.params)
    tolerance = 1e-5 if mode == "implicit" else 1e-9
    assert largest_difference({k: g.sum(0) for k, g in each.items()}, whole) <= tolerance


@pytest.mark.parametrize("mode", MODES)
def test_forward_over_a_batch_of_directions(problem, mode):
    """vmap of jvp: the columns of a Jacobian."""
    psi = make(problem, mode, steps=60)
    direction = random_direction(problem.params)
    both = {k: torch.stack([d, -2 * d]) for k, d in direction.items()}
    columns = vmap(
        lambda d: jvp(lambda p: psi(p, problem.x, problem.y), (problem.params,), (d,))[1]
    )(both)
    assert columns[0].abs().max() > 1e-4
    assert (columns[1] + 2 * columns[0]).abs().max() <= 1e-6


def whole(problem, weights, derivative, steps=7):
    """A functional of ψ's end, in θ and in the start."""
    psi = make(problem, derivative, steps)
    return lambda p, x: (psi(p, x, problem.y, center=problem.x) * weights).sum()


@pytest.mark.parametrize(
    "kept", [*({"every": k} for k in (0, 2, 3, 7, 20)), *({"kept": k} for k in (0, 2, 6, 7, 20))]
)
def test_how_many_iterates_and_graphs_are_kept_changes_nothing(problem, weights, kept):
    found, expected = (
        grad(whole(problem, weights, derivative), (0, 1))(problem.params, problem.x)
        for derivative in (fr.adjoint(**kept), fr.unrolled())
    )
    assert largest_difference(found[0], expected[0]) <= 1e-12
    assert (found[1] - expected[1]).abs().max() <= 1e-12
    assert expected[1].abs().max() > 1e-3


@pytest.mark.parametrize("derivative", [fr.truncated(3), fr.one_step()])
def test_a_truncated_one_has_no_derivative_in_the_start(problem, weights, derivative):
    """It would be a zero that means nothing. Where the start is held there is no error."""
    f = whole(problem, weights, derivative)
    with pytest.raises(fr.FuncrobustError, match=r"start\.detach\(\)"):
        grad(f, 1)(problem.params, problem.x)
    with pytest.raises(fr.FuncrobustError, match=r"start\.detach\(\)"):
        jvp(lambda x: f(problem.params, x), (problem.x,), (weights,))
    leaf = problem.x.clone().requires_grad_()
    with pytest.raises(fr.FuncrobustError, match=r"start\.detach\(\)"):
        f(problem.params, leaf).backward()
    held = grad(lambda x: f(problem.params, x.detach()), 0)(problem.x)
    assert held.abs().max() == 0


def test_a_truncated_one_longer_than_the_iteration_is_the_adjoint(problem, weights):
    """In the start too."""
    found, expected = (
        grad(whole(problem, weights, d), (0, 1))(problem.params, problem.x)
        for d in (fr.truncated(7), fr.adjoint())
    )
    assert largest_difference(found[0], expected[0]) <= 1e-12
    assert (found[1] - expected[1]).abs().max() <= 1e-12


def test_a_derivative_of_your_own(problem, weights):
    """A function of the iteration: the last two steps unrolled, the end compared with fr's."""

    def last_two(step, steps, params, start, y, center):
        held = fr.iterate(step, steps - 2, params, start, y, center).detach()
        return fr.iterate(step, 2, params, held, y, center)

    ends, slopes = [], []
    for derivative in (last_two, fr.truncated(2)):
        f = whole(problem, weights, derivative)
        ends.append(f(problem.params, problem.x))
        slopes.append(grad(f)(problem.params, problem.x))
    assert abs(ends[0] - ends[1]) <= 1e-12
    assert largest_difference(*slopes) <= 1e-12
    assert largest(slopes[0].values()) > 1e-3


@pytest.mark.parametrize("mode", ["unrolled", "adjoint", "segmented"])
def test_forward_over_reverse(problem, weights, mode):
    """A Hessian-vector product, against the difference of two gradients."""
    f = whole(problem, weights, mode, steps=4)
    direction = random_direction(problem.params)

    def slope(params):
        return grad(f)(params, problem.x)

    _, product = jvp(slope, (problem.params,), (direction,))
    other = random_direction(problem.params, seed=2)
    numeric = directional_difference(
        lambda p: sum((s * other[k]).sum() for k, s in slope(p).items()),
        problem.params, direction,
    )  # fmt: skip
    assert abs(numeric) > 1e-3
    assert abs(inner(product, other) - numeric) <= 1e-6 * abs(numeric)


@pytest.mark.parametrize("mode", ["adjoint", "segmented", "truncated", "one_step"])
def test_reverse_over_reverse_names_what_works(problem, weights, mode):
    f = whole(problem, weights, mode, steps=4)

    def size(params):
        return sum(g.square().sum() for g in grad(f)(params, problem.x).values())

    with pytest.raises(fr.FuncrobustError, match=r"jvp of grad.*derivative=fr\.unrolled\(\)"):
        grad(size)(problem.params)


def test_an_iteration_whose_graphs_are_all_kept_has_a_second_derivative(problem, weights):
    def size(derivative):
        f = whole(problem, weights, derivative, steps=3)
        return lambda p: sum(g.square().sum() for g in grad(f)(p, problem.x).values())

    found, expected = (
        grad(size(derivative))(problem.params) for derivative in (fr.adjoint(kept=3), fr.unrolled())
    )
    assert largest_difference(found, expected) <= 1e-10
    assert largest(expected.values()) > 1e-3


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: fr.adjoint(kept=-1), "kept"), (lambda: fr.adjoint(kept=0.5), "kept"),
        (lambda: fr.adjoint(every=-1), "every"), (lambda: fr.adjoint(every=1.5), "every"),
        (lambda: fr.truncated(0), "k must be"), (lambda: fr.truncated(-1), "k must be"),
        (lambda: fr.implicit(rtol=0.0), "rtol"), (lambda: fr.implicit(rtol=1.0), "rtol"),
        (lambda: fr.implicit(maxiter=0), "maxiter"),
    ],
)  # fmt: skip
def test_bad_values(make_one, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        make_one()


@pytest.mark.parametrize("derivative", [fr.adjoint(), fr.adjoint(kept=3), fr.truncated(2)])
def test_what_a_step_closes_over_is_not_differentiated_in_part(problem, derivative):
    """The last steps would be, and the answer finite and wrong: it is refused instead."""

    def end(step_size, derivative):
        psi = fr.psi(
            problem.loss, fr.l2(1.0), step_size=step_size, steps=4, targeted=True,
            derivative=derivative,
        )  # fmt: skip
        return psi(problem.params, problem.x, problem.y).square().sum()

    size = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(fr.FuncrobustError, match=r"closes over.*derivative=fr\.unrolled\(\)"):
        grad(lambda a: end(a, derivative))(size)
    with pytest.raises(fr.FuncrobustError, match="closes over"):
        end(size.clone().requires_grad_(), derivative)
    slope = grad(lambda a: end(a, fr.unrolled()))(size)
    ahead, behind = end(size + 1e-6, fr.adjoint()), end(size - 1e-6, fr.adjoint())
    assert abs(float(slope - (ahead - behind) / 2e-6)) < 1e-5 * abs(float(slope))
    assert end(size.requires_grad_().detach(), derivative).isfinite()


def test_a_closed_over_batch_is_told_too(problem):
    reference = problem.x.clone().requires_grad_()
    psi = fr.psi(fr.away_from(reference), fr.l2(1.0), step_size=0.1, steps=3)
    with pytest.raises(fr.FuncrobustError, match="closes over"):
        psi(problem.params, problem.x + 0.1, problem.y)


@pytest.mark.parametrize(
    "derivative", [fr.adjoint(), fr.adjoint(kept=0), fr.truncated(2), fr.one_step()],
    ids=["adjoint", "kept=0", "truncated", "one-step"],
)  # fmt: skip
def test_a_second_derivative_in_the_start_alone_is_refused_too(derivative):
    """ψ's end is linear in what is differentiated first, so that only the iterates carry it."""

    def loss(params, x, _y):
        return params["a"] * (x**3).sum(1)

    def first(start):
        psi = fr.psi(
            loss, fr.unconstrained(bounds=None), step_size=0.1, steps=3, derivative=derivative
        )
        a = {"a": torch.tensor(1.0, dtype=torch.float64)}
        end = torch.func.grad(lambda a: psi(a, start, y, center=center).sum())
        return end(a)["a"]

    start = torch.tensor([[0.5]], dtype=torch.float64)
    y, center = torch.zeros(1, dtype=torch.int64), start.clone()
    assert first(start).isfinite()
    with pytest.raises(fr.FuncrobustError, match=r"no second derivative|none in the start"):
        torch.func.grad(first)(start)
