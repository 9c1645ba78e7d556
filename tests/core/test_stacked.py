"""Stacked networks by vmap: every operator gives each member what it gives it alone."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from problems import DERIVATIVES, TinyNet, largest_difference, make_problem
from torch.func import grad, stack_module_state, vmap

import funcrobust as fr
from funcrobust.core.regularisers.cure import DerivativeOfCure

CURES = get_args(DerivativeOfCure)


def member(seed):
    """Weights and batch-norm statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TinyNet().double()
        module.net[1].running_mean.normal_()
        module.net[1].running_var.uniform_(0.5, 2.0)
    return module.eval()


MEMBERS = [member(seed) for seed in (1, 2)]
PROBLEM = make_problem()
MODEL = fr.functionalize(MEMBERS[0])


def stacked():
    """(params, buffers) with a leading axis of 2, as torch has them."""
    return [{k: t.detach() for k, t in d.items()} for d in stack_module_state(MEMBERS)]


def alone(i):
    return [{k: t[i] for k, t in d.items()} for d in stacked()]


def same_as_a_loop(f, tolerance=1e-12):
    """vmap(f) over params and buffers against f of each; a tensor, or tensors by name."""
    found = vmap(f)(*stacked())
    for i in range(2):
        expected = f(*alone(i))
        if isinstance(expected, torch.Tensor):
            assert (found[i] - expected).abs().max() <= tolerance
        else:
            assert largest_difference({k: t[i] for k, t in found.items()}, expected) <= tolerance
    ends = [f(*alone(i)) for i in range(2)]
    first = [e if isinstance(e, torch.Tensor) else e["net.5.weight"] for e in ends]
    assert (first[0] - first[1]).abs().max() > 100 * tolerance, "the members differ"


def cross_entropy(buffers):
    return fr.cross_entropy(MODEL.with_buffers(buffers))


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"use_best": True}], ids=["plain", "momentum", "best"]
)
@pytest.mark.parametrize("ball", [fr.linf(0.03), fr.l2(0.5)], ids=["linf", "l2"])
def test_pgd(ball, options):
    start = ball.sample(PROBLEM.x, fr.generator(0, "start"))

    def end(params, buffers):
        pgd = fr.pgd(cross_entropy(buffers), ball, step_size=0.02, steps=4, **options)
        return pgd(params, start, PROBLEM.y, center=PROBLEM.x)

    same_as_a_loop(end)


def contracting(loss, derivative):
    """ψ with a fixed point: the implicit derivative has something to be the derivative of."""

    def pulled(params, x, y):
        return loss(params, x, y) + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    return fr.psi(
        pulled, fr.unconstrained(), step_size=0.1, steps=60, targeted=True, derivative=derivative
    )


WEIGHTS = torch.randn(PROBLEM.x.shape, generator=torch.Generator().manual_seed(7)).double()


@pytest.mark.parametrize("name", DERIVATIVES)
def test_psi(name):
    """The end, and its derivative in θ."""

    def end(params, buffers):
        return contracting(cross_entropy(buffers), DERIVATIVES[name])(params, PROBLEM.x, PROBLEM.y)

    def slope(params, buffers):
        return grad(lambda p: (end(p, buffers) * WEIGHTS).sum())(params)

    same_as_a_loop(end)
    if name != "implicit":
        same_as_a_loop(slope)


def test_psi_with_the_implicit_derivative():
    """Over the parameters; what it closes over cannot be followed, and a line says so."""
    loss = cross_entropy(MODEL.buffers)
    psi = contracting(loss, fr.implicit(rtol=1e-10))

    def slope(params, _):
        return grad(lambda p: (psi(p, PROBLEM.x, PROBLEM.y) * WEIGHTS).sum())(params)

    same_as_a_loop(slope, tolerance=1e-8)  # the solver stops at 1e-10, wherever that is

    def with_buffers(params, buffers):
        psi = contracting(cross_entropy(buffers), fr.implicit())
        return grad(lambda p: (psi(p, PROBLEM.x, PROBLEM.y) * WEIGHTS).sum())(params)

    with pytest.raises(fr.FuncrobustError, match=r"closes over.*fr\.adjoint\(\)"):
        vmap(with_buffers)(*stacked())


@pytest.mark.parametrize("derivative", CURES)
def test_cure(derivative):
    """Value and derivative."""

    def value(params, buffers):
        term = fr.cure(cross_entropy(buffers), 0.5, derivative=derivative)
        return term(params, PROBLEM.x, PROBLEM.y)

    same_as_a_loop(value)
    # A finite difference of losses divides their rounding by the length of its step.
    rounding = 1e-9 if derivative in ("central", "one-sided") else 1e-12
    same_as_a_loop(
        lambda params, buffers: grad(lambda p: value(p, buffers).mean())(params), rounding
    )


def test_a_composition():
    """Adversarial, TRADES, CURE's relatives and the drift, as one objective."""
    ball = fr.linf(0.03)
    draw = fr.generator(0, "points")
    a, b = (ball.sample(PROBLEM.x, draw) for _ in range(2))

    def slope(params, buffers):
        loss = cross_entropy(buffers)
        psi = fr.psi(loss, fr.l2(2.0), step_size=0.1, steps=3, targeted=True)
        total = fr.weighted_sum(
            (1.0, fr.adversarial(loss, fr.rs_fgsm(ball), start=a)),
            (0.5, fr.trades(MODEL.with_buffers(buffers), fr.pgd_k(ball, steps=2), start=a)),
            (0.5, fr.gradient_alignment(loss, toward=a)),
            (0.5, fr.gradient_alignment(loss, toward=a, form="code")),
            (0.5, fr.local_linearity(loss, fr.pgd_k(ball, steps=2), start=a)),
            (0.5, fr.elle(loss, ends=(a, b), mix=torch.full((4,), 0.3))),
            (0.1, fr.drift(psi)), (0.1, fr.input_gradient_norm(loss)),
        )  # fmt: skip
        return grad(fr.mean(total))(params, PROBLEM.x, PROBLEM.y)

    same_as_a_loop(slope)


def test_an_update_of_all_members():
    """In training mode, their statistics too: one vmap over the state."""
    optim = fr.optimizer("sgd", 0.1, weight_decay=0.01, decayed=fr.matrices)

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        cure = fr.cure(fr.cross_entropy(modes.batch), 0.5)
        robust = fr.adversarial(loss, fr.rs_fgsm(fr.linf(0.03)), start=batch.start)
        return {"loss": (1.0, robust), "curvature": (0.5, cure)}

    update = fr.make_update(fr.training_objective(MODEL, compose), optim)
    start = fr.linf(0.03).sample(PROBLEM.x, fr.generator(0, "start"))
    batch = fr.Batch(PROBLEM.x, PROBLEM.y, start)

    def after(params, buffers):
        state = fr.State(params, buffers, optim.init(params), torch.tensor(0))
        state, metrics = update(state, batch)
        counted = "net.1.num_batches_tracked"
        moved = {k: b for k, b in state.buffers.items() if k != counted}
        return state.params | moved | metrics

    same_as_a_loop(after)
