"""CURE against its formula and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import directional_difference, inner, random_direction
from torch.func import grad

import funcrobust as fr


def published(problem, h):
    """The document's steps in plain autograd, written out apart from the library."""
    x = problem.x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(problem.module(x), problem.y, reduction="sum"), x)[0]
    z = torch.sign(g)
    z = h * z / z.flatten(1).norm(dim=1)[:, None, None, None]
    moved = (problem.x + z).requires_grad_()
    loss = F.cross_entropy(problem.module(moved), problem.y, reduction="sum")
    return (torch.autograd.grad(loss, moved)[0] - g).flatten(1).norm(dim=1)


@pytest.mark.parametrize("h", [0.5, 3.0])
def test_classic_is_the_documents_formula(problem, h):
    found = fr.cure(problem.loss, h)(problem.params, problem.x, problem.y)
    assert found.shape == (4,)
    assert (found - published(problem, h)).abs().max() <= 1e-12


def test_small_h_is_the_hessian_along_z(problem):
    """‖g(x + z) − g(x)‖/h → ‖H z/‖z‖‖ as h → 0 (a Hessian-vector product, exactly)."""
    h = 1e-5
    curvature = fr.cure(problem.loss, h)(problem.params, problem.x, problem.y) / h
    gradient = fr.input_gradient(problem.loss)
    g = gradient(problem.params, problem.x, problem.y)
    unit = g.sign() / g.sign().flatten(1).norm(dim=1)[:, None, None, None]
    _, product = torch.func.jvp(
        lambda x: gradient(problem.params, x, problem.y), (problem.x,), (unit,)
    )
    assert torch.allclose(curvature, product.flatten(1).norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("direction", ["classic", "random"])
def test_gradient_equals_finite_differences(problem, direction):
    toward = torch.rand(problem.x.shape, generator=torch.Generator().manual_seed(3)).double()
    toward = 2 * toward - 1 if direction == "random" else None
    term = fr.mean(fr.cure(problem.loss, 1.0, direction=direction, toward=toward))
    step = random_direction(problem.params)
    exact = inner(grad(term)(problem.params, problem.x, problem.y), step)
    numeric = directional_difference(lambda p: term(p, problem.x, problem.y), problem.params, step)
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_fgsm_direction_holds_the_clean_gradient(problem):
    toward = (problem.x + 0.03 * torch.sign(torch.randn_like(problem.x))).clamp(0, 1)
    term = fr.cure(problem.loss, direction="fgsm", toward=toward)
    gradient = fr.input_gradient(problem.loss)
    clean = gradient(problem.params, problem.x, problem.y)

    def by_hand(params):
        return (gradient(params, toward, problem.y) - clean).square().flatten(1).sum(1).mean()

    assert torch.allclose(
        term(problem.params, problem.x, problem.y).mean(), by_hand(problem.params)
    )
    step = random_direction(problem.params)
    found = grad(fr.mean(term))(problem.params, problem.x, problem.y)
    numeric = directional_difference(by_hand, problem.params, step)
    assert abs(inner(found, step) - numeric) <= 1e-6 * abs(numeric)


def test_a_linear_classifier_has_no_curvature_in_its_margin():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).double()
    model = fr.functionalize(module)
    x, y = torch.rand(3, 3, 2, 2).double(), torch.tensor([0, 1, 0])
    term = fr.cure(fr.margin(model.predict), 3.0)
    assert term(model.params, x, y).abs().max() <= 1e-12
    gradient = grad(fr.mean(term))(model.params, x, y)
    assert all(torch.isfinite(g).all() for g in gradient.values())


def test_none_is_zero(problem):
    assert fr.cure(problem.loss, direction="none")(problem.params, problem.x, problem.y).sum() == 0


def test_cure_has_a_gradient_in_the_parameters(problem):
    """One published version forgot create_graph: its penalty trained nothing."""
    gradient = grad(fr.mean(fr.cure(problem.loss, 3.0)))(problem.params, problem.x, problem.y)
    assert sum(float(g.norm()) for g in gradient.values()) > 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"h": -1.0}, "h must be"), ({"h": float("inf")}, "h must be"),
        ({"direction": "sideways"}, "direction must be"), ({"direction": "random"}, "toward"),
        ({"toward": torch.zeros(4, 3, 8, 8)}, "toward"),
    ],
)  # fmt: skip
def test_bad_input(problem, kwargs, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.cure(problem.loss, **kwargs)
