"""Linearity regularisers against plain autograd, closed forms and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import (
    directional_difference,
    inner,
    largest_difference,
    make_problem,
    random_direction,
)
from torch import nn
from torch.func import grad

import funcrobust as fr
from funcrobust.core.attacks import fixed

MU = 0.75


def plain(problem, x):
    """Losses and input gradients, from the module."""
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(problem.module(x), problem.y, reduction="none")
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def dot(a, b):
    return (a * b).sum(dim=(1, 2, 3))


def drawn(problem, count, radius=0.3):
    generator = torch.Generator().manual_seed(7)
    noise = 2 * torch.rand((count, *problem.x.shape), generator=generator).double() - 1
    return problem.x + radius * noise


def at(point):
    """An attack that ends at a given point."""
    return fr.Attack(lambda x, _: x, lambda _: fixed(point))


def regularisers(problem):
    a, b = drawn(problem, 2)
    center = drawn(problem, 1, 0.1)[0]
    mix = torch.tensor([0.1, 0.4, 0.5, 0.9]).double()
    return {
        "norm": fr.input_gradient_norm(problem.loss),
        "alignment": fr.gradient_alignment(problem.loss, toward=a),
        "error": fr.linearity_error(problem.loss, problem.params, center, problem.y),
        "llr": fr.local_linearity(problem.loss, at(a), start=problem.x),
        "elle": fr.elle(problem.loss, ends=(a, b), mix=mix),
    }


NAMES = ("norm", "alignment", "error", "llr", "elle")


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_formulas(problem, name):
    a, b = drawn(problem, 2)
    center = drawn(problem, 1, 0.1)[0]
    (loss, g), (loss_a, g_a), (loss_b, _) = (plain(problem, p) for p in (problem.x, a, b))
    loss_0, g_0 = plain(problem, center)
    mix = torch.tensor([0.1, 0.4, 0.5, 0.9]).double()
    between = plain(problem, b * mix[:, None, None, None] + a * (1 - mix)[:, None, None, None])[0]
    rise = dot(a - problem.x, g)
    expected = {
        "norm": dot(g, g),
        "alignment": 1 - dot(g, g_a) / (dot(g, g) * dot(g_a, g_a)).sqrt(),
        "error": (loss - loss_0 - dot(problem.x - center, g_0)).abs(),
        "llr": (loss_a - loss - rise).abs() + MU * rise.abs(),
        "elle": (between - ((1 - mix) * loss_a + mix * loss_b)).square(),
    }[name]
    found = regularisers(problem)[name](problem.params, problem.x, problem.y)
    assert found.shape == (4,)
    assert expected.min() > 1e-10, "else this compares nothing"
    assert (found - expected).abs().max() <= 1e-9 * expected.max()


@pytest.mark.parametrize("name", NAMES)
def test_a_negated_loss_is_as_far_from_linear(problem, name):
    negated = replace(problem, loss=lambda *arguments: -problem.loss(*arguments))
    found, expected = (regularisers(p)[name](p.params, p.x, p.y) for p in (negated, problem))
    assert found.min() >= 0
    assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(problem, name):
    term = fr.mean(regularisers(problem)[name])
    step = random_direction(problem.params)
    exact = inner(grad(term)(problem.params, problem.x, problem.y), step)
    numeric = directional_difference(lambda p: term(p, problem.x, problem.y), problem.params, step)
    assert abs(exact) > 1e-8, "else this compares nothing"
    assert abs(exact - numeric) <= 2e-5 * abs(exact)


@pytest.fixture
def linear():
    """A two-class linear network: its margin is linear in x."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
        x = torch.rand(3, 3, 2, 2).double()
    model = fr.functionalize(module)
    return model, x, torch.tensor([0, 1, 0]), module[1].weight.detach()


def test_a_linear_loss_has_no_linearity_error(linear):
    model, x, y, weight = linear
    margin = fr.margin(model.predict)
    a, b = x + 0.3, x.flip(0)
    for term in (
        fr.linearity_error(margin, model.params, a, y),
        fr.local_linearity(margin, at(a), start=x, mu=0.0),
        fr.elle(margin, ends=(a, b), mix=torch.rand(3)),
        fr.gradient_alignment(margin, toward=b),
    ):
        assert term(model.params, x, y).abs().max() <= 1e-12
    # With μ what is left of LLR is μ·|δ·w|: δ = 0.3 everywhere.
    llr = fr.local_linearity(margin, at(a), start=x)(model.params, x, y)
    assert torch.allclose(llr, (MU * 0.3 * (weight[0] - weight[1]).sum()).abs().expand(3))


def test_the_gradient_norm_of_a_logistic_regression(linear):
    """∇ₓℓ = (1 − p_y)·(w_other − w_y) of two classes."""
    model, x, y, weight = linear
    loss = fr.cross_entropy(model.predict)
    wrong = 1 - model.predict(model.params, x).softmax(1).gather(1, y[:, None]).squeeze(1)
    expected = wrong.square() * (weight[0] - weight[1]).square().sum()
    assert torch.allclose(fr.input_gradient_norm(loss)(model.params, x, y), expected)


def test_equal_gradients_are_aligned_and_opposite_ones_are_not(problem):
    aligned = fr.gradient_alignment(problem.loss, toward=problem.x)
    assert aligned(problem.params, problem.x, problem.y).abs().max() <= 1e-12
    slope = grad(fr.mean(aligned))(problem.params, problem.x, problem.y)
    assert inner(slope, slope) <= 1e-18

    def bowl(params, x, y):
        return x.square().flatten(1).sum(1)

    opposite = fr.gradient_alignment(bowl, toward=-problem.x)({}, problem.x, problem.y)
    assert (opposite - 2).abs().max() <= 1e-12


def published_alignment(module, x, y, toward, share):
    """What FGSM training in the paper's repository adds to the loss, λ apart, and its slopes.

    Its ``train.py`` detaches the gradient at x (where FGSM starts, from ``--attack_init zero``),
    leaves out examples with a gradient of norm 0, and takes the mean over the others. ``share``
    multiplies the losses.
    """

    def slope(point, create_graph):
        point = point.clone().requires_grad_()
        loss = (share * F.cross_entropy(module(point), y, reduction="none")).mean()
        return torch.autograd.grad(loss, point, create_graph=create_graph)[0]

    grad1, grad2 = slope(x, create_graph=False).detach(), slope(toward, create_graph=True)
    kept = [g.detach().square().sum((1, 2, 3)) ** 0.5 != 0 for g in (grad1, grad2)]
    grad1, grad2 = (g[kept[0] * kept[1]] for g in (grad1, grad2))
    unit1, unit2 = (g / g.square().sum((1, 2, 3), keepdim=True).sqrt() for g in (grad1, grad2))
    penalty = 1.0 - (unit1 * unit2).sum((1, 2, 3)).mean()
    penalty.backward()
    return penalty.detach(), {k: p.grad for k, p in module.named_parameters()}


@pytest.mark.parametrize("flat", [[], [2], [0, 1, 3]])
def test_the_codes_alignment_is_the_published_training_code(problem, flat):
    """Also where some examples, or all but one, have no gradient."""
    share = torch.ones(4).double()
    share[flat] = 0.0
    toward = drawn(problem, 1)[0]

    def loss(*arguments):
        return share * problem.loss(*arguments)

    def alignment(form):
        term = fr.gradient_alignment(loss, toward=toward, form=form)
        return fr.mean(term), (problem.params, problem.x, problem.y)

    objective, arguments = alignment("code")
    module = problem.model.module()
    expected, slopes = published_alignment(module, problem.x, problem.y, toward, share)
    assert expected > 1e-3, "else this compares nothing"
    assert abs(objective(*arguments) - expected) <= 1e-12
    found = grad(objective)(*arguments)
    assert largest_difference(found, slopes) <= 1e-12
    paper, arguments = alignment("paper")
    # The gradient at x moves with θ in the paper: another derivative, by as much as itself.
    assert largest_difference(grad(paper)(*arguments), found) > 1e-2
    if flat:  # of which the paper's form says 1, as of orthogonal ones
        assert paper(*arguments) == pytest.approx(
            float(expected) * (4 - len(flat)) / 4 + len(flat) / 4, rel=1e-12
        )


def test_the_codes_alignment_of_no_gradients_is_0(problem):
    term = fr.gradient_alignment(lambda *a: 0 * problem.loss(*a), toward=problem.x, form="code")
    assert term(problem.params, problem.x, problem.y).abs().max() == 0


def test_an_alignment_of_another_form_is_refused(problem):
    with pytest.raises(fr.FuncrobustError, match='"paper" or "code"'):
        fr.gradient_alignment(problem.loss, toward=problem.x, form="Code")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_alignment_does_not_depend_on_the_gradients_size(dtype):
    problem = make_problem(dtype)
    toward = drawn(problem, 1)[0].to(dtype)
    tiny = fr.gradient_alignment(lambda *a: 1e-12 * problem.loss(*a), toward=toward)
    usual = fr.gradient_alignment(problem.loss, toward=toward)
    arguments = (problem.params, problem.x, problem.y)
    # Of 1 − cos = 0.003 float32 keeps four digits.
    close = 1e-9 if dtype == torch.float64 else 1e-3
    assert (tiny(*arguments) - usual(*arguments)).abs().max() <= close * usual(*arguments).max()
    found, expected = grad(fr.mean(tiny))(*arguments), grad(fr.mean(usual))(*arguments)
    off = {k: found[k] - g for k, g in expected.items()}
    assert inner(off, off) <= (10 * close) ** 2 * inner(expected, expected)


@pytest.mark.parametrize("name", ["norm", "alignment", "alignment_code", "llr", "elle"])
@pytest.mark.parametrize("scale", [0.0, 100.0, 1000.0])
def test_finite_for_flat_and_for_confident_networks(name, scale):
    """With last-layer weights of 0 the input gradient is 0; with large ones it underflows."""
    problem = make_problem(torch.float32)
    params = dict(problem.params)
    for part in ("net.5.weight", "net.5.bias"):
        params[part] = scale * params[part]
    y = problem.model.predict(params, problem.x).argmax(1)
    a, b = (p.float() for p in drawn(problem, 2, 0.03))
    term = {
        "norm": fr.input_gradient_norm(problem.loss),
        "alignment": fr.gradient_alignment(problem.loss, toward=a),
        "alignment_code": fr.gradient_alignment(problem.loss, toward=a, form="code"),
        "llr": fr.local_linearity(problem.loss, at(a), start=problem.x),
        "elle": fr.elle(problem.loss, ends=(a, b), mix=torch.full((4,), 0.5)),
    }[name]
    assert torch.isfinite(term(params, problem.x, y)).all()
    slope = grad(fr.mean(term))(params, problem.x, y)
    assert all(torch.isfinite(g).all() for g in slope.values())


def test_local_linearity_searches_for_the_largest_error(problem):
    """Three steps of PGD on |ℓ(x + δ) − ℓ(x) − δ·∇ℓ(x)|, by hand."""
    ball, alpha = fr.linf(0.1), 0.05
    start = ball.sample(problem.x, fr.generator(0, "start"))
    loss, g = plain(problem, problem.x)
    moved = start
    for _ in range(3):
        here = moved.clone().requires_grad_()
        ahead = F.cross_entropy(problem.module(here), problem.y, reduction="none")
        error = (ahead - loss - dot(here - problem.x, g)).abs()
        ascent = torch.autograd.grad(error.sum(), here)[0].sign()
        moved = problem.x + (moved + alpha * ascent - problem.x).clamp(-0.1, 0.1)
    rise = dot(moved - problem.x, g)
    expected = (plain(problem, moved)[0] - loss - rise).abs() + 0.5 * rise.abs()
    term = fr.local_linearity(
        problem.loss, fr.pgd_k(ball, step_size=alpha, steps=3), start=start, mu=0.5
    )
    found = term(problem.params, problem.x, problem.y)
    assert (found - expected).abs().max() <= 1e-12
    # δ is held constant, so the derivative is that with a search that ends there.
    held = fr.local_linearity(problem.loss, at(moved), start=start, mu=0.5)
    slopes = [grad(fr.mean(t))(problem.params, problem.x, problem.y) for t in (term, held)]
    assert largest_difference(*slopes) <= 1e-12


def test_elle_is_one_pass(problem):
    """Over all three points together, so that batch statistics are of one batch."""
    sizes = []

    def predict(params, x):
        sizes.append(len(x))
        return problem.model.predict(params, x)

    a, b = drawn(problem, 2)
    fr.elle(fr.cross_entropy(predict), ends=(a, b), mix=torch.rand(4))(
        problem.params, problem.x, problem.y
    )
    assert sizes == [12]


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_bad_mu(problem, mu):
    with pytest.raises(fr.FuncrobustError, match="mu must be"):
        fr.local_linearity(problem.loss, at(problem.x), start=problem.x, mu=mu)


@pytest.mark.parametrize("name", NAMES)
def test_a_reduced_loss_is_refused(problem, name):
    reduced = replace(problem, loss=fr.mean(problem.loss))
    with pytest.raises(fr.FuncrobustError, match=r"per example, \(B,\).*reduction"):
        regularisers(reduced)[name](problem.params, problem.x, problem.y)


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_more_than_one_dimension(problem, name):
    """Soft ones, (B, classes): at a one-hot label all is as at the class."""

    def soft_loss(params, x, y):
        return -(y * problem.model.predict(params, x).log_softmax(-1)).sum(-1)

    soft = replace(problem, loss=soft_loss, y=F.one_hot(problem.y, 5).double())
    found, expected = (regularisers(p)[name](p.params, p.x, p.y) for p in (soft, problem))
    assert (found - expected).abs().max() <= 1e-12
