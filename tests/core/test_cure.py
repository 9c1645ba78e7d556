"""CURE against its formula and finite differences."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from problems import (
    directional_difference,
    inner,
    largest,
    largest_difference,
    make_problem,
    random_direction,
)
from torch import nn
from torch.func import grad

import funcrobust as fr
from funcrobust.core.regularisers.cure import DerivativeOfCure

DERIVATIVES = get_args(DerivativeOfCure)
EXACT = ("shared", "batched", "forward")


def published(problem, h):
    """The document's steps in plain autograd, written out apart from the library."""
    x = problem.x.clone().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(problem.module(x), problem.y, reduction="sum"), x)[0]
    z = torch.sign(g)
    z = h * z / z.flatten(1).norm(dim=1)[:, None, None, None]
    moved = (problem.x + z).requires_grad_()
    loss = F.cross_entropy(problem.module(moved), problem.y, reduction="sum")
    return (torch.autograd.grad(loss, moved)[0] - g).flatten(1).norm(dim=1)


DIRECTIONS = pytest.mark.parametrize("direction", ["classic", "random"])


def uniform(x):
    return 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)).double() - 1


def along(problem, direction):
    return uniform(problem.x) if direction == "random" else None


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


@DIRECTIONS
def test_gradient_equals_finite_differences(problem, direction):
    term = fr.mean(fr.cure(problem.loss, 1.0, along=along(problem, direction)))
    step = random_direction(problem.params)
    exact = inner(grad(term)(problem.params, problem.x, problem.y), step)
    numeric = directional_difference(lambda p: term(p, problem.x, problem.y), problem.params, step)
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_gradient_difference_holds_the_clean_gradient(problem):
    toward = (problem.x + 0.03 * uniform(problem.x).sign()).clamp(0, 1)
    term = fr.gradient_difference(problem.loss, toward=toward)
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


def test_cure_has_a_gradient_in_the_parameters(problem):
    """One published version forgot create_graph: its penalty trained nothing."""
    gradient = grad(fr.mean(fr.cure(problem.loss, 3.0)))(problem.params, problem.x, problem.y)
    assert sum(float(g.norm()) for g in gradient.values()) > 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"h": -1.0}, "h must be"), ({"h": float("inf")}, "h must be"),
        ({"h": float("nan")}, "h must be"),
        ({"h": 1.0, "derivative": "sideways"}, "derivative must be one of shared, batched"),
    ],
)  # fmt: skip
def test_bad_input(problem, kwargs, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.cure(problem.loss, **kwargs)


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_reduced_loss_is_refused(problem, derivative):
    """It would make CURE B times too small, in silence."""
    term = fr.cure(fr.mean(problem.loss), 1.0, derivative=derivative)
    with pytest.raises(fr.FuncrobustError, match=r"per example, \(B,\) = \([48],\).*reduction"):
        term(problem.params, problem.x, problem.y)


def displacement(problem, h, direction):
    """z and u = Δ/‖Δ‖, constant, in plain autograd."""

    def slope(point):
        point = point.clone().requires_grad_()
        loss = F.cross_entropy(problem.module(point), problem.y, reduction="sum")
        return torch.autograd.grad(loss, point)[0]

    g = slope(problem.x)
    z = h * (g.sign() if direction == "classic" else uniform(problem.x)) / 192**0.5
    delta = slope(problem.x + z) - g
    return z, delta / delta.flatten(1).norm(dim=1)[:, None, None, None]


def slope_of(term, problem):
    return grad(fr.mean(term))(problem.params, problem.x, problem.y)


def relative(found, expected):
    off = {k: found[k] - e for k, e in expected.items()}
    return (inner(off, off) / inner(expected, expected)) ** 0.5


@DIRECTIONS
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_the_derivative_does_not_change_the_value(problem, derivative, direction):
    term = fr.cure(problem.loss, 1.5, along=along(problem, direction), derivative=derivative)
    found = term(problem.params, problem.x, problem.y)
    z, _ = displacement(problem, 1.5, direction)
    expected = []
    for point in (problem.x, problem.x + z):
        point = point.clone().requires_grad_()
        loss = F.cross_entropy(problem.module(point), problem.y, reduction="sum")
        expected.append(torch.autograd.grad(loss, point)[0])
    expected = (expected[1] - expected[0]).flatten(1).norm(dim=1)
    assert (found - expected).abs().max() <= 1e-12


@DIRECTIONS
@pytest.mark.parametrize("derivative", EXACT)
def test_exact_ones_are_the_derivative_at_constant_z(problem, derivative, direction):
    """Against plain double backward on the module, and finite differences of the value there."""
    z, _ = displacement(problem, 1.0, direction)
    found = slope_of(
        fr.cure(problem.loss, 1.0, along=along(problem, direction), derivative=derivative), problem
    )
    module = problem.model.module()

    def slopes(point):
        point = point.clone().requires_grad_()
        loss = F.cross_entropy(module(point), problem.y, reduction="sum")
        return torch.autograd.grad(loss, point, create_graph=True)[0]

    def value():
        change = slopes(problem.x + z) - slopes(problem.x)
        return change.flatten(1).norm(dim=1).mean()

    value().backward()
    expected = {k: p.grad for k, p in module.named_parameters()}
    assert largest_difference(found, expected) <= 1e-12

    def held(params):
        module.load_state_dict(params, strict=False)
        return value().detach()

    step = random_direction(problem.params)
    numeric = directional_difference(held, problem.params, step)
    assert abs(inner(found, step) - numeric) <= 1e-6 * abs(numeric)


@DIRECTIONS
def test_central_converges_with_the_square_of_h(problem, direction):
    errors = []
    for h in (0.2, 0.1):
        term, exact = (
            fr.cure(problem.loss, h, along=along(problem, direction), derivative=b)
            for b in ("central", "shared")
        )
        errors.append(relative(slope_of(term, problem), slope_of(exact, problem)))
    assert 1e-7 < errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@DIRECTIONS
def test_one_sided_holds_the_clean_gradient(problem, direction):
    """In the limit it is the derivative of ⟨g(x + z), u⟩, u constant; g(x) has none."""
    errors = []
    for h in (0.4, 0.2):
        z, u = displacement(problem, h, direction)
        module = problem.model.module()
        point = (problem.x + z).requires_grad_()
        loss = F.cross_entropy(module(point), problem.y, reduction="sum")
        (torch.autograd.grad(loss, point, create_graph=True)[0] * u).sum().div(4).backward()
        expected = {k: p.grad for k, p in module.named_parameters()}
        term = fr.cure(problem.loss, h, along=along(problem, direction), derivative="one-sided")
        errors.append(relative(slope_of(term, problem), expected))
    assert 1e-7 < errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_h_may_be_a_tensor(problem, derivative):
    number, tensor = (
        fr.cure(problem.loss, h, derivative=derivative) for h in (0.75, torch.tensor(0.75))
    )
    arguments = (problem.params, problem.x, problem.y)
    assert torch.equal(number(*arguments), tensor(*arguments))
    assert largest_difference(slope_of(number, problem), slope_of(tensor, problem)) == 0


def test_gradient_difference_twice_as_far_is_the_published_code(problem):
    """Its linf direction: ‖∇ℓ(x̂ + (x̂ − x)) − ∇ℓ(x)‖², the second gradient constant; its slope."""
    toward = (problem.x + 0.03 * uniform(problem.x).sign()).clamp(0, 1)
    module = problem.model.module()
    clean = problem.x.clone().requires_grad_()
    first = torch.autograd.grad(F.cross_entropy(module(clean), problem.y, reduction="sum"), clean)
    beyond = (toward + (toward - problem.x)).requires_grad_()
    loss = F.cross_entropy(module(beyond), problem.y, reduction="sum")
    second = torch.autograd.grad(loss, beyond, create_graph=True)
    expected = (second[0] - first[0].detach()).square().sum(dim=(1, 2, 3))
    term = fr.gradient_difference(problem.loss, toward=problem.x + 2 * (toward - problem.x))
    found = term(problem.params, problem.x, problem.y)
    assert torch.allclose(found, expected, rtol=1e-10)
    expected.mean().backward()
    slopes = {k: p.grad for k, p in module.named_parameters()}
    assert relative(slope_of(term, problem), slopes) <= 1e-10


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("size", [0.0, 1e-21, 1e-24])
def test_gradients_whose_squares_underflow(derivative, size):
    """A confident example's: nothing is scaled up that has no length in float32."""
    problem = make_problem(torch.float32)
    term = fr.cure(lambda *a: size * problem.loss(*a), 1.0, derivative=derivative)
    slope = slope_of(term, problem)
    assert largest(slope.values()) <= size


def test_top_curvature_is_an_eigenvalue_of_the_hessian():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 3)).double()
        x, y = torch.rand(4, 3, 2, 2).double(), torch.tensor([0, 1, 2, 0])
    model = fr.functionalize(module)
    loss = fr.cross_entropy(model.predict)
    term = fr.top_curvature(loss, iterations=300)
    found = term(model.params, x, y)
    expected = []
    for image, label in zip(x, y, strict=True):
        hessian = torch.autograd.functional.hessian(
            lambda v, label=label: F.cross_entropy(module(v.reshape(1, 3, 2, 2)), label[None]),
            image.flatten(),
        )
        eigenvalues = torch.linalg.eigvalsh(hessian)
        expected.append(eigenvalues[eigenvalues.abs().argmax()])
    expected = torch.stack(expected)
    assert torch.allclose(found, expected, rtol=1e-6)
    negated = fr.top_curvature(lambda *a: -loss(*a), iterations=300)(model.params, x, y)
    assert torch.allclose(negated, -expected, rtol=1e-6), "the sign is the eigenvalue's"
    for iterations in (1, 5):
        early = fr.top_curvature(loss, iterations=iterations)(model.params, x, y)
        assert (early.abs() <= expected.abs() + 1e-12).all()
    slope = grad(fr.mean(term))(model.params, x, y)
    assert all(float(s.abs().max()) == 0 for s in slope.values())


def test_top_curvature_of_tiny_and_of_no_gradients():
    problem = make_problem(torch.float32)
    arguments = (problem.params, problem.x, problem.y)
    usual = fr.top_curvature(problem.loss)(*arguments)
    tiny = fr.top_curvature(lambda *a: 1e-24 * problem.loss(*a))(*arguments)
    assert torch.allclose(tiny / 1e-24, usual, rtol=1e-3)
    assert (fr.top_curvature(lambda *a: 0 * problem.loss(*a))(*arguments) == 0).all()


@pytest.mark.parametrize("along", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_top_curvature_where_the_gradient_is_another_eigenvector(along, dtype):
    """ℓ = x₁ + a·x₁²/2 − 3·x₂² at x₂ = 0: the Hessian is diag(a, −6), and the gradient along x₁."""
    x = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.1, 0.0]], dtype=dtype)

    def loss(params, x, y):
        return x[:, 0] + along * x[:, 0].square() / 2 - 3 * x[:, 1].square()

    found = fr.top_curvature(loss)({}, x, torch.zeros(2))
    assert (found.double() + 6).abs().max() <= 0.05


@pytest.mark.parametrize("iterations", [0, -1, 1.5])
def test_top_curvature_needs_iterations(problem, iterations):
    with pytest.raises(fr.FuncrobustError, match="iterations"):
        fr.top_curvature(problem.loss, iterations=iterations)


def by_the_batch(problem):
    """The cross-entropy on the batch's own statistics, in which examples see one another."""
    return fr.cross_entropy(problem.model.by_batch(problem.model.buffers))


@pytest.mark.parametrize("derivative", EXACT)
def test_whose_statistics_x_and_x_plus_z_go_by(problem, derivative):
    """Two batches for shared, one for batched and forward, against torch's own batch norm."""
    module = problem.model.module().train()

    def slopes(points, y):
        points = points.clone().requires_grad_()
        loss = F.cross_entropy(module(points), y, reduction="sum")
        return torch.autograd.grad(loss, points)[0]

    g = slopes(problem.x, problem.y)
    z = g.sign() / 192**0.5
    two = (slopes(problem.x + z, problem.y) - g).flatten(1).norm(dim=1)
    here, there = slopes(torch.cat([problem.x, problem.x + z]), problem.y.repeat(2)).chunk(2)
    one = (there - here).flatten(1).norm(dim=1)
    assert (two - one).abs().max() > 1e-3, "else this compares nothing"
    term = fr.cure(by_the_batch(problem), 1.0, derivative=derivative)
    found = term(problem.params, problem.x, problem.y)
    assert (found - (two if derivative == "shared" else one)).abs().max() <= 1e-12


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_labels_of_more_than_one_dimension(problem, derivative):
    """Soft ones, (B, classes): at a one-hot label all is as at the class."""

    def soft(params, x, y):
        return -(y * problem.model.predict(params, x).log_softmax(-1)).sum(-1)

    onehot = F.one_hot(problem.y, 5).double()
    found, expected = (
        fr.cure(loss, 0.5, derivative=derivative)(problem.params, problem.x, y)
        for loss, y in ((soft, onehot), (problem.loss, problem.y))
    )
    assert (found - expected).abs().max() <= 1e-12
