"""The perturbations and their derivatives, against finite differences and each other."""

from __future__ import annotations

import pytest
import torch
from problems import (
    DERIVATIVES,
    Problem,
    directional_difference,
    inner,
    largest_difference,
    make_problem,
    random_direction,
)
from torch.func import grad, jvp, vmap

import funcrobust as fr
from funcrobust.core.derivatives import adjoint

BALLS = [fr.l2(0.3), fr.l2(float("inf")), fr.unconstrained(), fr.l2(5.0)]
IDS = ["l2", "l2-inf", "unconstrained"]
# An unnormalised gradient step needs a longer stride to move as far as a normalised one.
STEP = {0: 0.1, 1: 0.1, 2: 2.0, 3: 0.1}


def make_psi(
    problem: Problem, which: int, derivative: str | fr.Derivative, steps: int = 6
) -> fr.Perturbation:
    return fr.psi(
        problem.loss, BALLS[which], step_size=STEP[which], steps=steps, targeted=True,
        derivative=DERIVATIVES[derivative] if isinstance(derivative, str) else derivative,
    )  # fmt: skip


def linear_functional(psi: fr.Perturbation, problem: Problem):
    """A random linear functional of ψ: the drift itself can be degenerate (FACTS)."""
    w = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()
    return lambda params, x: (psi(params, x, problem.y) * w).sum()


@pytest.mark.parametrize("which", range(3), ids=IDS)
@pytest.mark.parametrize("objective", ["drift", "linear"])
def test_adjoint_equals_finite_differences(problem, which, objective):
    psi = make_psi(problem, which, "adjoint")
    if objective == "drift":
        # On the ball's surface the drift is constant: let the L2 walk end inside.
        psi = make_psi(problem, which or 3, "adjoint")
        mean_drift = fr.mean(fr.drift(psi))

        def f(p):
            return mean_drift(p, problem.x, problem.y)
    else:
        functional = linear_functional(psi, problem)

        def f(p):
            return functional(p, problem.x)

    direction = random_direction(problem.params)
    exact = inner(grad(f)(problem.params), direction)
    numeric = directional_difference(f, problem.params, direction)
    assert abs(exact) > 1e-6, "a derivative of zero would pass any comparison"
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


@pytest.mark.parametrize("which", range(3), ids=IDS)
def test_adjoint_equals_unroll(problem, which):
    gradients = [
        grad(linear_functional(make_psi(problem, which, mode), problem), (0, 1))(
            problem.params, problem.x
        )
        for mode in ("adjoint", "unrolled")
    ]
    assert largest_difference(gradients[0][0], gradients[1][0]) <= 1e-8
    assert (gradients[0][1] - gradients[1][1]).abs().max() <= 1e-8


@pytest.mark.parametrize("steps", [1, 3, 7, 9])
def test_segmented_equals_unroll(problem, steps):
    """Also where the last segment is shorter than the others."""

    def f(mode):
        psi = fr.psi(
            problem.loss, fr.l2(2.0), step_size=0.2, steps=steps, derivative=DERIVATIVES[mode]
        )
        return lambda p, x: psi(p, x, problem.y).square().sum()

    found, expected = (
        grad(f(mode), (0, 1))(problem.params, problem.x) for mode in ("segmented", "unrolled")
    )
    assert largest_difference(found[0], expected[0]) <= 1e-10
    assert (found[1] - expected[1]).abs().max() <= 1e-10


def test_start_and_center_have_their_own_derivatives(problem):
    """With the ball tight, the projected end depends on the centre as well as the start."""
    start = problem.x + 0.02

    def f(mode, start, center):
        psi = make_psi(problem, 0, mode)
        return psi(problem.params, start, problem.y, center=center).square().sum()

    for argument in (0, 1):
        found = [
            grad(lambda s, c, mode=mode: f(mode, s, c), argument)(start, problem.x)
            for mode in ("adjoint", "unrolled")
        ]
        assert found[0].abs().max() > 1e-3
        assert (found[0] - found[1]).abs().max() <= 1e-8


def test_adjoint_under_plain_autograd(problem):
    leaves = {k: p.clone().requires_grad_() for k, p in problem.params.items()}
    value = linear_functional(make_psi(problem, 0, "adjoint"), problem)(leaves, problem.x)
    found = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    expected = grad(linear_functional(make_psi(problem, 0, "unrolled"), problem))(
        problem.params, problem.x
    )
    assert largest_difference(found, expected) <= 1e-8


@pytest.mark.parametrize("which", range(3), ids=IDS)
def test_forward_mode(problem, which):
    directions = (random_direction(problem.params), torch.ones_like(problem.x))
    tangents = [
        jvp(lambda p, x, m=mode: make_psi(problem, which, m)(p, x, problem.y),
            (problem.params, problem.x), directions)[1]
        for mode in ("adjoint", "unrolled")
    ]  # fmt: skip
    assert (tangents[0] - tangents[1]).abs().max() <= 1e-10


@pytest.mark.parametrize("mode", ["adjoint", "segmented", "unrolled"])
def test_vmap_over_restarts(problem, mode):
    psi = make_psi(problem, 0, mode)
    starts = torch.stack([problem.x, problem.x + 0.01, problem.x - 0.02])
    mapped = vmap(lambda s: psi(problem.params, s, problem.y, center=problem.x))(starts)
    looped = torch.stack([psi(problem.params, s, problem.y, center=problem.x) for s in starts])
    assert (mapped - looped).abs().max() <= 1e-12


@pytest.mark.parametrize("mode", ["adjoint", "segmented", "unrolled"])
def test_per_example_gradients(problem, mode):
    drift = fr.drift(make_psi(problem, 0, mode))

    def one(params, x, y):
        return drift(params, x[None], y[None])[0]

    each = vmap(grad(one), (None, 0, 0))(problem.params, problem.x, problem.y)
    for i in range(len(problem.x)):
        alone = grad(one)(problem.params, problem.x[i], problem.y[i])
        assert largest_difference({k: g[i] for k, g in each.items()}, alone) <= 1e-10


def test_forward_over_forward_and_forward_over_reverse(problem):
    """Forward mode takes the unrolled iteration, so that no order of it is silently zero."""
    found = []
    for mode in ("adjoint", "unrolled"):
        f = linear_functional(make_psi(problem, 0, mode, steps=3), problem)
        step = torch.ones_like(problem.x)

        def first(x, f=f, step=step):
            return jvp(lambda x: f(problem.params, x), (x,), (step,))[1]

        over_forward = jvp(first, (problem.x,), (step,))[1]
        over_reverse = jvp(lambda x, f=f: grad(f, 1)(problem.params, x), (problem.x,), (step,))[1]
        found.append((over_forward, over_reverse))
    assert found[0][0].abs() > 1e-4
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1])


def test_soft_labels_have_a_derivative(problem):
    def soft_cross_entropy(params, x, y):
        return -(y * problem.model.predict(params, x).log_softmax(-1)).sum(-1)

    y = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).double(), -1)
    found = []
    for mode in ("adjoint", "unrolled"):
        psi = fr.psi(
            soft_cross_entropy, fr.l2(5.0), step_size=0.1, steps=4, derivative=DERIVATIVES[mode]
        )
        f = lambda p, y, psi=psi: psi(p, problem.x, y).square().sum()  # noqa: E731
        found.append(grad(f, (0, 1))(problem.params, y))
    assert found[0][1].abs().max() > 1e-4
    assert (found[0][1] - found[1][1]).abs().max() <= 1e-10
    assert largest_difference(found[0][0], found[1][0]) <= 1e-10


def test_integer_images_are_refused(problem):
    attack = fr.pgd(problem.loss, fr.linf(0.1), step_size=0.1, steps=1)
    with pytest.raises(fr.FuncrobustError, match="divide by 255"):
        attack(problem.params, (problem.x * 255).to(torch.uint8), problem.y)


def test_nested_grad(problem):
    """A gradient step on the drift inside a loss: unroll has it, the adjoint says no."""

    def after_a_step(mode):
        f = linear_functional(make_psi(problem, 0, mode, steps=3), problem)
        return lambda p: sum(g.square().sum() for g in grad(f)(p, problem.x).values())

    direction = random_direction(problem.params)
    second = inner(grad(after_a_step("unrolled"))(problem.params), direction)
    numeric = directional_difference(after_a_step("unrolled"), problem.params, direction)
    assert abs(second - numeric) <= 1e-5 * abs(second)
    with pytest.raises(fr.FuncrobustError, match=r"derivative=fr\.unrolled"):
        grad(after_a_step("adjoint"))(problem.params)


def test_truncated(problem):
    full = grad(linear_functional(make_psi(problem, 0, "adjoint"), problem))(
        problem.params, problem.x
    )
    whole = grad(linear_functional(make_psi(problem, 0, fr.truncated(6)), problem))(
        problem.params, problem.x
    )
    assert largest_difference(full, whole) <= 1e-12
    # The last two steps by hand: four steps held constant, then two unrolled.
    held = make_psi(problem, 0, "unrolled", steps=4)(problem.params, problem.x, problem.y).detach()
    last = make_psi(problem, 0, "unrolled", steps=2)
    w = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(7)).double()
    expected = grad(lambda p: (last(p, held, problem.y, center=problem.x) * w).sum())(
        problem.params
    )
    found = grad(linear_functional(make_psi(problem, 0, fr.truncated(2)), problem))(
        problem.params, problem.x
    )
    assert largest_difference(found, expected) <= 1e-10


def test_drift_gradient_is_not_zero_where_the_published_code_had_none(problem):
    """The published code detached ψ's output. Ours reaches every parameter."""
    drift = fr.mean(fr.drift(make_psi(problem, 1, "adjoint")))
    gradient = grad(drift)(problem.params, problem.x, problem.y)
    assert all(float(g.abs().max()) > 0 for k, g in gradient.items() if k != "net.0.bias")


def test_targeted_descends_and_untargeted_ascends(problem):
    before = problem.loss(problem.params, problem.x, problem.y)
    for targeted, sign in ((True, -1), (False, 1)):
        attack = fr.pgd(problem.loss, fr.l2(1.0), step_size=0.2, steps=5, targeted=targeted)
        after = problem.loss(
            problem.params, attack(problem.params, problem.x, problem.y), problem.y
        )
        assert (sign * (after - before) > 0).all()


def test_fgsm_is_goodfellows_formula(problem):
    eps = 8 / 255
    x = problem.x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(problem.module(x), problem.y, reduction="sum").backward()
    expected = (problem.x + eps * x.grad.sign()).clamp(0, 1)
    found = fr.fgsm(problem.loss, fr.linf(eps), step_size=eps)(problem.params, problem.x, problem.y)
    assert (found - expected).abs().max() <= 1e-12


def test_zero_steps_is_the_start(problem):
    for mode in ("adjoint", "unrolled"):
        end = make_psi(problem, 0, mode, steps=0)(problem.params, problem.x, problem.y)
        assert torch.equal(end, problem.x)


def test_relu_network_too():
    problem = make_problem(activation=torch.nn.ReLU)
    f = linear_functional(make_psi(problem, 1, "adjoint"), problem)
    direction = random_direction(problem.params)
    exact = inner(grad(f)(problem.params, problem.x), direction)
    numeric = directional_difference(lambda p: f(p, problem.x), problem.params, direction, 1e-7)
    assert abs(exact - numeric) <= 1e-5 * abs(exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ball": fr.linf(0.1)}, "zero derivative"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"steps": -1}, "steps"),
        ({"derivative": "magic"}, r"a value such as fr\.adjoint\(\).*'magic'"),
        ({"derivative": 4}, r"a value such as fr\.adjoint\(\).*4"),
    ],
)
def test_bad_input(problem, change, message):
    options = {"ball": fr.l2(1.0), "step_size": 0.1, "steps": 2} | change
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.psi(problem.loss, options.pop("ball"), **options)


def test_what_stops_the_compiler(monkeypatch):
    """Under torch.compile the adjoint unrolls because Dynamo cannot trace it. Can it now?"""
    problem = make_problem()
    psi = fr.psi(problem.loss, fr.l2(2.0), step_size=0.2, steps=2, targeted=True)

    def slope(params):
        return grad(lambda p: psi(p, problem.x, problem.y).square().sum())(params)

    expected = slope(problem.params)
    torch.compiler.reset()
    compiled = torch.compile(slope, fullgraph=True, backend="eager")(problem.params)
    assert largest_difference(compiled, expected) <= 1e-10
    monkeypatch.setattr(adjoint, "_unrolled_anyway", lambda: False)
    torch.compiler.reset()
    with pytest.raises(Exception, match="FakeTensor"):
        torch.compile(slope, fullgraph=True, backend="eager")(problem.params)


@pytest.mark.parametrize("best", ["apgd", "use_best"])
def test_the_best_of_all_lies_in_the_ball(problem, best):
    """A start outside it may be the best that was looked at."""
    ball = fr.linf(0.1, bounds=None)
    upward = lambda params, x, y: x.flatten(1).sum(1)  # noqa: E731
    attack = fr.apgd(upward, ball, steps=5) if best == "apgd" else fr.pgd(
        upward, ball, step_size=0.05, steps=5, use_best=True
    )  # fmt: skip
    end = attack(problem.params, problem.x + 0.7, problem.y, center=problem.x)
    assert (end - problem.x).abs().max() <= 0.1 + 1e-12
