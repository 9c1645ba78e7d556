"""The two training objectives against their formulas, put together by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import directional_difference, inner, largest_difference, random_direction
from torch.func import grad

import funcrobust as fr

EPS, ALPHA = 8 / 255, 10 / 255
BALL = fr.linf(EPS)


def attack(loss):
    return fr.fgsm(loss, BALL, step_size=ALPHA)


@pytest.fixture
def start(problem):
    return BALL.sample(problem.x, fr.generator(0, "start"))


def by_hand(problem, start, *, lam, h, n):
    """RS-FGSM + λ·CURE in plain autograd on the module itself."""
    module = problem.model.module().double()
    delta = start.clone().requires_grad_()
    F.cross_entropy(module(delta), problem.y, reduction="sum").backward()
    x_hat = start + ALPHA * delta.grad.sign()
    x_hat = (problem.x + (x_hat - problem.x).clamp(-EPS, EPS)).clamp(0, 1)
    module.zero_grad()
    x = problem.x[:n].clone().requires_grad_()
    loss = F.cross_entropy(module(x), problem.y[:n], reduction="sum")
    g = torch.autograd.grad(loss, x, create_graph=True)[0]
    z = h * g.detach().sign() / g[0].numel() ** 0.5
    loss = F.cross_entropy(module(x + z), problem.y[:n], reduction="sum")
    g_z = torch.autograd.grad(loss, x, create_graph=True)[0]
    curvature = (g_z - g).flatten(1).norm(dim=1).mean()
    # Backward now: training mode below changes the running statistics in place.
    (lam * curvature).backward()
    module.train()
    robust = F.cross_entropy(module(x_hat), problem.y)
    robust.backward()
    gradients = {k: p.grad for k, p in module.named_parameters()}
    total = robust.item() + lam * curvature.item()
    return total, curvature.item(), gradients, dict(module.named_buffers())


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_cure_training_is_the_formula(problem, start, fraction):
    objective = fr.cure_training(problem.model, attack, lam=0.7, h=1.5, fraction=fraction)
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    total, (buffers, metrics) = objective(*arguments)
    expected, curvature, gradients, after = by_hand(
        problem, start, lam=0.7, h=1.5, n=round(4 * fraction)
    )
    assert abs(float(total) - expected) < 1e-10
    assert abs(float(metrics["curvature"]) - curvature) < 1e-10
    assert largest_difference(buffers, after) < 1e-12
    found = grad(objective, has_aux=True)(*arguments)[0]
    assert largest_difference(found, gradients) < 1e-10


def test_the_attack_is_constant(problem, start):
    """No derivative flows through x̂: the gradient is that of the loss at a fixed x̂."""
    objective = fr.cure_training(problem.model, attack, lam=0.0, h=1.0)
    arguments = (problem.model.buffers, problem.x, problem.y, start)
    found = grad(objective, has_aux=True)(problem.params, *arguments)[0]
    x_hat = attack(problem.loss)(problem.params, start, problem.y, center=problem.x)

    def fixed(params):
        logits, _ = problem.model.predict_train(params, problem.model.buffers, x_hat)
        return F.cross_entropy(logits, problem.y)

    assert largest_difference(found, grad(fixed)(problem.params)) < 1e-12


def test_batch_statistics_change_what_the_attack_sees(problem, start):
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    values = [
        fr.cure_training(problem.model, attack, lam=0, h=1, batch_statistics=b)(*arguments)[0]
        for b in (False, True)
    ]
    assert float(values[0]) != float(values[1])


@pytest.mark.parametrize("direction", ["classic", "random", "fgsm", "none"])
def test_every_direction_trains(problem, start, direction):
    objective = fr.cure_training(problem.model, attack, lam=1.0, h=1.0, direction=direction)
    noise = 2 * torch.rand(problem.x.shape, generator=fr.generator(0, "noise")).double() - 1
    gradient, (_, metrics) = grad(objective, has_aux=True)(
        problem.params, problem.model.buffers, problem.x, problem.y, start, noise
    )
    assert all(torch.isfinite(g).all() for g in gradient.values())
    assert ("curvature" in metrics) == (direction != "none")


def test_bf16_is_close_to_fp32(problem, start):
    model = fr.functionalize(problem.model.module().float())
    arguments = (model.params, model.buffers, problem.x.float(), problem.y, start.float())
    exact, half = (
        fr.cure_training(model, attack, lam=0.5, h=1.0, dtype=dtype)(*arguments)[0]
        for dtype in (None, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert abs(float(exact - half)) < 0.02


def drift_of(predict):
    psi = fr.psi(
        fr.cross_entropy(predict), fr.unconstrained(), step_size=2.0, steps=4, targeted=True
    )
    return fr.drift(psi)


def test_psi_training_is_drift_plus_anchor(problem):
    label = (problem.y + 1) % 5
    objective = fr.psi_training(problem.model, drift_of, weight=3.0)
    arguments = (problem.model.buffers, problem.x, label, problem.y)
    total, (buffers, _) = objective(problem.params, *arguments)
    drift = drift_of(problem.model.predict)(problem.params, problem.x, label).mean()
    anchor = problem.loss(problem.params, problem.x, problem.y).mean()
    assert torch.allclose(total, drift + 3 * anchor)
    assert largest_difference(buffers, problem.model.buffers) == 0, "the statistics stay put"
    direction = random_direction(problem.params)
    exact = inner(grad(objective, has_aux=True)(problem.params, *arguments)[0], direction)
    numeric = directional_difference(
        lambda p: objective(p, *arguments)[0], problem.params, direction
    )
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_without_an_anchor_the_drift_is_all(problem):
    objective = fr.psi_training(problem.model, drift_of, weight=0.0)
    total, (_, metrics) = objective(
        problem.params, problem.model.buffers, problem.x, problem.y, problem.y
    )
    assert set(metrics) == {"drift"}
    assert total == metrics["drift"]


def test_psi_training_lowers_the_drift(problem):
    optim = fr.optimizer("SGD", 0.02, clip_norm=1.0)
    update = fr.make_update(fr.psi_training(problem.model, drift_of, weight=0.0), optim)
    state = fr.initial_state(problem.model, optim)
    drifts = []
    for _ in range(30):
        state, metrics = update(state, problem.x, problem.y, problem.y)
        drifts.append(float(metrics["drift"]))
    assert drifts[-1] < 0.8 * drifts[0]
