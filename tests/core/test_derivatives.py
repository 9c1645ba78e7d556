"""One contract for every way of differentiating ψ: grad, vjp, vmap and jvp, in float64.

The iteration contracts to a fixed point, so that every mode has something true to be compared with:
the exact ones finite differences of ψ, the truncated ones finite differences of the steps they see,
the implicit one both.
"""

from __future__ import annotations

import pytest
import torch
from problems import DERIVATIVES, directional_difference, inner, random_direction
from torch.func import grad, jvp, vjp, vmap

import funcrobust as fr

MODES = ["unrolled", "adjoint", "segmented", "truncated", "one_step", "implicit"]
STEPS = 200  # a contraction by 0.9 or so: what is left to move is below 1e-8
SEEN = {"truncated": 3, "one_step": 1}


def make(problem, derivative, steps=STEPS):
    def loss(params, x, y):
        return problem.loss(params, x, y) + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    return fr.psi(
        loss,
        fr.unconstrained(),
        step_size=0.1,
        steps=steps,
        targeted=True,
        derivative=DERIVATIVES[derivative],
    )


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
    assert max(float((each[k].sum(0) - whole[k]).abs().max()) for k in whole) <= tolerance


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
