"""psi-train's objective is restoration + drift + entropy + anchor; its slope is that of finite
differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from problems import directional_difference, inner, largest_difference, random_direction
from torch.func import grad

import funcrobust as fr
from funcrobust.commands.psi_train.compose import (
    STARTS,
    Composition,
    PsiBatch,
    derivative_named,
    make_anchor,
    make_psi,
    threat_radius,
)
from funcrobust.commands.psi_train.options import PsiTrain

BALL = fr.unconstrained()
WALK = {
    "steps": 4, "step_size": 2.0, "start": "own", "psi_loss": "cross-entropy", "restore": 0.0,
    "drift_weight": 1.0,
}  # fmt: skip


def objective_of(problem, ball=BALL, **given):
    options = PsiTrain.filled(given, preset=WALK)
    anchor = make_anchor(options, partial(problem.model.predict, problem.params))
    return fr.training_objective(problem.model, Composition(options, ball, anchor))


def psi_of(problem):
    return fr.psi(problem.loss, BALL, step_size=2.0, steps=4, targeted=True)


def check_slope(objective, params, *rest):
    direction = random_direction(params)
    exact = inner(grad(objective, has_aux=True)(params, *rest)[0], direction)
    numeric = directional_difference(lambda p: objective(p, *rest)[0], params, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_it_is_drift_plus_anchor(problem):
    label = (problem.y + 1) % 5
    objective = objective_of(problem, anchor=3.0, anchor_loss="clean")
    rest = (problem.model.buffers, PsiBatch(problem.x, label, problem.y))
    total, (buffers, metrics) = objective(problem.params, *rest)
    drift = fr.drift(psi_of(problem))(problem.params, problem.x, label).mean()
    anchor = F.cross_entropy(problem.module(problem.x), problem.y)
    assert abs(total - drift - 3 * anchor) <= 1e-12
    assert set(metrics) == {"drift", "anchor"}
    assert largest_difference(buffers, problem.model.buffers) == 0, "the statistics stay put"
    check_slope(objective, problem.params, *rest)


@pytest.mark.parametrize("steps", [1, 3])
def test_restoration(problem, steps):
    """From degraded images toward their own classes, weighed by how far off these are."""
    degraded = problem.x + torch.tensor([0.001, 0.03, 0.1, 0.5]).reshape(4, 1, 1, 1) * torch.cos(
        torch.arange(problem.x.numel()).reshape(problem.x.shape)
    )
    objective = objective_of(
        problem, fr.unconstrained(bounds=None), restore=3.0, drift_weight=0.0, anchor=2.0,
        anchor_loss="clean", steps=steps, psi_loss="logit", drift_fraction=0.75,
    )  # fmt: skip
    batch = PsiBatch(problem.x, problem.y, problem.y, degraded=degraded)
    total, (_, metrics) = objective(problem.params, problem.model.buffers, batch)
    end = degraded[:3]
    for _ in range(steps):
        point = end.detach().requires_grad_()
        chosen = problem.module(point)[range(3), problem.y[:3]].sum()
        end = point + 2.0 * torch.autograd.grad(chosen, point)[0]
    rho = (degraded - problem.x)[:3].square().mean((1, 2, 3)).sqrt().clamp_min(0.01)
    assert rho[0] == 0.01
    expected = ((problem.x[:3] - end).square().mean((1, 2, 3)) / rho).mean()
    assert abs(metrics["restoration"] - expected) <= 1e-12
    assert set(metrics) == {"restoration", "anchor"}
    assert abs(total - 3.0 * expected - 2.0 * metrics["anchor"]) <= 1e-12
    check_slope(objective, problem.params, problem.model.buffers, batch)


def test_it_restores_and_sharpens(problem):
    """A start of its own, half of the batch, an L1 distance, and the entropy where ψ ends."""
    label = (problem.y + 1) % 5
    start = (problem.x + 0.05).clamp(0, 1)
    objective = objective_of(
        problem, distance="l1", anchor=2.0, anchor_loss="clean", entropy=0.5, drift_fraction=0.5
    )
    rest = (problem.model.buffers, PsiBatch(problem.x, label, problem.y, start=start))
    total, (_, metrics) = objective(problem.params, *rest)
    end = psi_of(problem)(problem.params, start[:2], label[:2])
    drift = (problem.x[:2] - end).abs().flatten(1).sum(1).mean()
    p = problem.module(end).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    anchor = F.cross_entropy(problem.module(problem.x), problem.y)
    for name, expected in (("drift", drift), ("entropy", entropy), ("anchor", anchor)):
        assert abs(metrics[name] - expected) <= 1e-12
    assert abs(total - drift - 0.5 * entropy - 2.0 * anchor) <= 1e-12
    check_slope(objective, problem.params, *rest)


def test_learned_starts(problem):
    """Parameters and start images move together; the formula, and its slope in both."""
    rate = 5.0
    chosen = torch.tensor([2, 0, 1, 3])
    starts = problem.x.flip(0) * 0.9
    params = problem.params | {STARTS: starts / rate}
    objective = objective_of(
        problem, anchor=1.0, anchor_loss="clean", learn_starts=4, starts_rate=rate
    )
    rest = (problem.model.buffers, PsiBatch(problem.x, problem.y, problem.y, chosen=chosen))
    total, (_, metrics) = objective(params, *rest)
    drift = fr.drift(psi_of(problem))(problem.params, starts[chosen], problem.y)
    assert abs(metrics["drift"] - drift.mean()) <= 1e-12
    assert total > metrics["drift"]
    check_slope(objective, params, *rest)
    moved = grad(objective, has_aux=True)(params, *rest)[0][STARTS]
    assert (moved.flatten(1).norm(dim=1) > 1e-6).all(), "every image has a gradient"


def test_images_that_the_network_made(problem):
    """x is s after its own number of steps, constant, and the drift is measured from there."""
    stops, start = torch.tensor([0, 3, 1, 2]), problem.x.flip(0)
    objective = objective_of(problem, start="made", anchor=0.0)
    batch = PsiBatch(problem.x, problem.y, problem.y, start=start, stops=stops)
    total, _ = objective(problem.params, problem.model.buffers, batch)
    step = fr.gradient_step(problem.loss, BALL, step_size=2.0, targeted=True)
    arrived = torch.cat([
        fr.iterate(step, int(k), problem.params, s[None], y[None], s[None])
        for k, s, y in zip(stops, start, problem.y, strict=True)
    ])  # fmt: skip
    assert (arrived - start).abs().amax((1, 2, 3)).gt(1e-3).tolist() == [False, True, True, True]
    held = fr.mean(fr.drift(psi_of(problem)))
    assert abs(total - held(problem.params, arrived, problem.y)) <= 1e-12
    slope = grad(objective, has_aux=True)(problem.params, problem.model.buffers, batch)[0]
    expected = grad(held)(problem.params, arrived, problem.y)
    assert largest_difference(slope, expected) <= 1e-12


def test_without_an_anchor_the_drift_is_all(problem):
    objective = objective_of(problem, anchor=0.0)
    batch = PsiBatch(problem.x, problem.y, problem.y)
    total, (_, metrics) = objective(problem.params, problem.model.buffers, batch)
    assert set(metrics) == {"drift"}
    assert total == metrics["drift"]


def test_the_control_is_the_anchor_alone(problem):
    objective = objective_of(problem, drift_weight=0.0, anchor=2.0, anchor_loss="clean")
    batch = PsiBatch(problem.x, problem.y, problem.y)
    total, (_, metrics) = objective(problem.params, problem.model.buffers, batch)
    assert set(metrics) == {"anchor"}
    assert total == 2.0 * metrics["anchor"]


def kl(a, b):
    return (a.softmax(1) * (a.log_softmax(1) - b.log_softmax(1))).sum(1)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["keep", "clean", "robust", "both"])
def test_anchors(problem, kind, steps):
    """On images, on PGD's of the cross-entropy, or on a share of each; with the true label."""
    more = {} if kind == "clean" else {"anchor_steps": steps}
    more |= {"anchor_share": 0.7} if kind in ("keep", "both") else {}
    more |= {"hard": 0.3} if kind == "keep" else {}
    options = PsiTrain.filled({"anchor_loss": kind, "epsilon": 0.03} | more)
    draw = fr.generator(0, "test")
    start = fr.linf(0.03).sample(problem.x, draw) if steps == 1 else problem.x
    before = {k: 1.1 * p for k, p in problem.params.items()}
    teacher = partial(problem.model.predict, before)
    found = make_anchor(options, teacher)(problem.model.predict, start)(
        problem.params, problem.x, problem.y
    )
    x_hat, module = start, problem.module
    for _ in range(steps):
        point = x_hat.clone().requires_grad_()
        loss = F.cross_entropy(module(point), problem.y, reduction="sum")
        alpha = 1.25 * 0.03 if steps == 1 else 2.5 * 0.03 / steps
        x_hat = x_hat + alpha * torch.autograd.grad(loss, point)[0].sign()
        x_hat = (problem.x + (x_hat - problem.x).clamp(-0.03, 0.03)).clamp(0, 1)
    clean, robust = (F.cross_entropy(module(x), problem.y, reduction="none")
                     for x in (problem.x, x_hat))  # fmt: skip
    kept = [
        kl(teacher(x), module(x)) + 0.3 * hard for x, hard in ((problem.x, clean), (x_hat, robust))
    ]
    expected = {
        "clean": clean, "robust": robust, "both": 0.7 * clean + 0.3 * robust,
        "keep": 0.7 * kept[0] + 0.3 * kept[1],
    }[kind]  # fmt: skip
    assert (robust > clean).sum() >= 3
    assert (found - expected).abs().max() <= 1e-12


def test_the_anchors_radius():
    assert threat_radius(PsiTrain()) == 8 / 255
    assert threat_radius(PsiTrain(epsilon=0.1)) == 0.1


@pytest.mark.parametrize(
    ("text", "derivative"),
    [
        ("adjoint", fr.adjoint()), ("adjoint:0", fr.adjoint(every=0)),
        ("adjoint:8", fr.adjoint(every=8)), ("unrolled", fr.unrolled()),
        ("truncated:3", fr.truncated(3)), ("one-step", fr.one_step()),
        ("implicit", fr.implicit()), ("implicit:50", fr.implicit(maxiter=50)),
    ],
)  # fmt: skip
def test_derivatives_by_name(text, derivative):
    assert derivative_named(text) == derivative
    PsiTrain(derivative=text, steps=4)


@pytest.mark.parametrize(
    "text", ["magic", "truncated", "truncated:x", "truncated:0", "unrolled:2", "implicit:0", ""]
)
def test_other_names_are_refused(text):
    with pytest.raises(fr.FuncrobustError):
        PsiTrain(derivative=text)
    with pytest.raises(fr.FuncrobustError):
        derivative_named(text)


@pytest.mark.parametrize("loss", ["cross-entropy", "log-odds", "margin", "logit", "entropy"])
@pytest.mark.parametrize("targeted", [True, False])
def test_what_psi_descends(problem, loss, targeted):
    """Steps down the loss of that name toward the label, or up."""
    options = PsiTrain(psi_loss=loss, targeted=targeted, steps=2, step_size=0.5)
    psi = make_psi(options, fr.l2(1.0), problem.model.predict)
    build = getattr(fr, loss.replace("-", "_"))
    expected = fr.psi(
        build(problem.model.predict), fr.l2(1.0), step_size=0.5, steps=2, targeted=targeted
    )
    arguments = (problem.params, problem.x, problem.y)
    assert torch.equal(psi(*arguments), expected(*arguments))
    assert (psi(*arguments) - problem.x).abs().max() > 1e-3
