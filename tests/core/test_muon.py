"""Muon against its formula by singular values, and against torch.optim's."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem
from torch import nn
from torch.func import vmap
from torch.utils._pytree import tree_map

import funcrobust as fr
from funcrobust.core.training.muon import orthogonalized, scale_by_muon


def polynomial(s, steps=5):
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7), (1, 9), (9, 1)])
def test_orthogonalized_is_the_polynomial_of_the_singular_values(shape):
    given = 37.0 * matrix(*shape)
    u, s, v = torch.linalg.svd(given, full_matrices=False)
    expected = u @ torch.diag(polynomial(s / s.norm())) @ v
    torch.testing.assert_close(orthogonalized(given), expected, rtol=0, atol=1e-6)  # TINY


def test_all_directions_move_alike():
    """Singular values over three orders of magnitude come out between 0.68 and 1.21."""
    u, _, v = torch.linalg.svd(matrix(8, 20), full_matrices=False)
    given = u @ torch.diag(torch.logspace(-2.5, 0, 8, dtype=torch.float64)) @ v
    found = torch.linalg.svdvals(orthogonalized(given))
    assert found.min() > 0.68
    assert found.max() < 1.21


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(6, 10), (16, 4)])
def test_matrices_follow_torch_optims(shape):
    """Over twenty steps with decay. torch's multiplies in bfloat16, so within a hundredth."""
    start = matrix(*shape).float()
    optim = fr.optimizer("muon", 0.02, momentum=0.95, weight_decay=0.5)
    theirs = nn.Parameter(start.clone())
    reference = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.95, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"
    )
    update = fr.make_update(fr.objective(lambda p, x, y: (p["w"] * x).sum((1, 2))), optim)
    state = fr.initial_state({"w": start}, optim)
    for step in range(20):
        x = matrix(*shape, seed=step + 1).float()
        state, _ = update(state, x[None], torch.zeros(1))
        theirs.grad = x.clone()
        reference.step()
    moved, wanted = state.params["w"] - start, theirs.detach() - start
    assert (moved - wanted).norm() < 0.01 * wanted.norm()
    assert wanted.norm() > 0.1 * start.norm()  # and it went somewhere


def test_kernels_are_matrices_and_the_rest_is_adamws():
    """One update of a network, taken apart: each tensor by its own formula."""
    problem = make_problem()
    optim = fr.optimizer("muon", 0.01, weight_decay=0.3)
    loss = fr.objective(problem.loss)
    before = fr.initial_state(problem.model, optim)
    after, _ = fr.make_update(loss, optim)(before, problem.x, problem.y)
    grads = torch.func.grad(lambda p: loss(p, before.buffers, problem.x, problem.y)[0])(
        before.params
    )
    seen = {"kernel": 0, "matrix": 0, "vector": 0}
    for name, p in before.params.items():
        g = grads[name]
        if p.ndim >= 2:
            seen["kernel" if p.ndim == 4 else "matrix"] += 1
            rows = (1.9 * g).reshape(len(g), -1)  # Nesterov: g + 0.9 of a trace of g
            u, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
            step = 0.2 * max(rows.shape) ** 0.5 * (u @ torch.diag(polynomial(s / s.norm())) @ v)
            expected = p - 0.01 * (step.reshape(p.shape).to(p) + 0.3 * p)
        else:
            seen["vector"] += 1
            expected = p - 0.01 * g / (g.abs() + 1e-8)  # no decay
        torch.testing.assert_close(after.params[name], expected, rtol=1e-4, atol=1e-5)
    assert all(seen.values())


def test_a_step_is_as_large_as_one_of_adamws():
    """0.2 in root mean square, whatever the shape and the gradient's size."""
    for shape, size in (((64, 64), 1e-4), ((16, 300), 1.0), ((300, 16), 1e4)):
        moved, _ = (t := scale_by_muon(0.0)).update(
            {"w": size * matrix(*shape)}, t.init({"w": matrix(*shape)}), inplace=False
        )
        assert 0.13 < float(moved["w"].square().mean().sqrt()) < 0.25


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torchopt's Adam, mapped
def test_it_is_pure_and_maps():
    """Three trainings in one, and again from the same state: as one by one."""
    problem = make_problem()
    optim = fr.optimizer("muon", 0.05)
    update = fr.make_update(fr.objective(problem.loss), optim)
    state = fr.initial_state(problem.model, optim)
    once, _ = update(state, problem.x, problem.y)
    again, _ = update(state, problem.x, problem.y)
    for name, p in once.params.items():
        assert torch.equal(p, again.params[name])
    shifts = torch.tensor([0.0, 0.1, 0.2], dtype=problem.x.dtype)
    states = tree_map(lambda t: torch.stack([t] * 3), state)
    many, _ = vmap(lambda state, s: update(state, problem.x + s, problem.y))(states, shifts)
    for i, s in enumerate(shifts):
        one, _ = update(state, problem.x + s, problem.y)
        for name, p in one.params.items():
            torch.testing.assert_close(many.params[name][i], p, rtol=1e-4, atol=1e-5)


def test_another_name_is_refused():
    with pytest.raises(fr.FuncrobustError, match="SGD, Adam, AdamW or Muon"):
        fr.optimizer("lion", 0.1)
