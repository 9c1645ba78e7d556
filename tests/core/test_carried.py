"""Momentum and use_best: what they return, and their derivatives in every mode."""

from __future__ import annotations

import pytest
import torch
from problems import (
    DERIVATIVES,
    directional_difference,
    inner,
    largest_difference,
    random_direction,
)
from torch.func import grad, jvp, vmap

import funcrobust as fr

OPTIONS = [{"momentum": 0.9}, {"use_best": True}, {"momentum": 1.0, "use_best": True}]
IDS = ["momentum", "best", "both"]


def make(problem, derivative="adjoint", steps=5, **options):
    return fr.psi(
        problem.loss, fr.l2(2.0), step_size=0.2, steps=steps, targeted=True,
        derivative=DERIVATIVES[derivative] if isinstance(derivative, str) else derivative,
        **options,
    )  # fmt: skip


def functional(psi, problem):
    w = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()
    return lambda params, x: (psi(params, x, problem.y) * w).sum()


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_finite_differences(problem, options):
    f = functional(make(problem, **options), problem)
    direction = random_direction(problem.params)
    exact = inner(grad(f)(problem.params, problem.x), direction)
    numeric = directional_difference(lambda p: f(p, problem.x), problem.params, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


@pytest.mark.parametrize("mode", ["adjoint", "segmented", fr.truncated(5)])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_every_mode_is_the_unrolled_one(problem, options, mode):
    found, expected = (
        grad(functional(make(problem, m, **options), problem), (0, 1))(problem.params, problem.x)
        for m in (mode, "unrolled")
    )
    assert largest_difference(found[0], expected[0]) <= 1e-9
    assert (found[1] - expected[1]).abs().max() <= 1e-9


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_forward_mode_and_vmap(problem, options):
    psi = make(problem, **options)
    f = functional(psi, problem)
    direction = random_direction(problem.params)
    _, tangent = jvp(lambda p: f(p, problem.x), (problem.params,), (direction,))
    reverse = grad(f)(problem.params, problem.x)
    assert abs(float(tangent) - inner(reverse, direction)) <= 1e-8

    def one(x, y):
        return psi(problem.params, x[None], y[None])[0]

    whole = psi(problem.params, problem.x, problem.y)
    assert (vmap(one)(problem.x, problem.y) - whole).abs().max() <= 1e-10


def test_best_is_the_best_of_all_iterates(problem):
    """A step so long that the loss goes up and down: the last image is not the best."""

    def walk(steps, **options):
        attack = fr.pgd(problem.loss, fr.l2(1.5), step_size=2.5, steps=steps, **options)
        return attack(problem.params, problem.x, problem.y)

    steps = 6
    iterates = torch.stack([walk(t) for t in range(steps + 1)])
    losses = torch.stack([problem.loss(problem.params, x, problem.y) for x in iterates])
    chosen = losses.argmax(0)
    assert (chosen != steps).any()
    found = walk(steps, use_best=True)
    for i, t in enumerate(chosen.tolist()):
        assert torch.equal(found[i], iterates[t, i])


def test_targeted_best_has_the_least_loss(problem):
    y = (problem.y + 1) % 5
    best = make(problem, use_best=True)(problem.params, problem.x, y)
    loss = problem.loss(problem.params, best, y)
    for steps in range(6):
        x = make(problem, steps=steps)(problem.params, problem.x, y)
        assert (loss <= problem.loss(problem.params, x, y) + 1e-12).all()


def test_no_momentum_is_plain(problem):
    """The velocity of μ → 0 is the gradient, up to a length that L2 steps do not see."""
    plain = make(problem)(problem.params, problem.x, problem.y)
    small = make(problem, momentum=1e-12)(problem.params, problem.x, problem.y)
    assert (plain - small).abs().max() <= 1e-9


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_zero_steps(problem, options):
    end = make(problem, steps=0, **options)(problem.params, problem.x, problem.y)
    assert torch.equal(end, problem.x)


def test_refused(problem):
    with pytest.raises(fr.FuncrobustError, match="fixed point"):
        make(problem, "implicit", use_best=True)
    with pytest.raises(fr.FuncrobustError, match="momentum"):
        make(problem, momentum=-1.0)
