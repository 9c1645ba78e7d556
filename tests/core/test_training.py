"""The two training objectives against their formulas, put together by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import directional_difference, inner, largest_difference, random_direction
from torch.func import grad

import funcrobust as fr

EPS, ALPHA = 8 / 255, 10 / 255
BALL = fr.linf(EPS)


def attack(loss):
    return fr.fgsm(loss, BALL, step_size=ALPHA)


@pytest.fixture
def start(problem):
    return BALL.sample(problem.x, fr.generator(0, "start"))


def by_hand(problem, start, *, lam, h, n, statistics):
    """RS-FGSM + λ·CURE in plain autograd on the module itself."""
    module = problem.model.module()
    delta = start.clone().requires_grad_()
    F.cross_entropy(module(delta), problem.y, reduction="sum").backward()
    x_hat = start + ALPHA * delta.grad.sign()
    x_hat = (problem.x + (x_hat - problem.x).clamp(-EPS, EPS)).clamp(0, 1)
    module.zero_grad()
    module.train(statistics != "running")
    if statistics == "held":  # with momentum 1 the running statistics are the batch's
        module.net[1].momentum = 1.0
        module(x_hat)
        module.eval()
    x = problem.x[:n].clone().requires_grad_()
    loss = F.cross_entropy(module(x), problem.y[:n], reduction="sum")
    g = torch.autograd.grad(loss, x, create_graph=True)[0]
    z = h * g.detach().sign() / g[0].numel() ** 0.5
    loss = F.cross_entropy(module(x + z), problem.y[:n], reduction="sum")
    g_z = torch.autograd.grad(loss, x, create_graph=True)[0]
    curvature = (g_z - g).flatten(1).norm(dim=1).mean()
    # Backward now: what follows changes the running statistics in place.
    (lam * curvature).backward()
    module.load_state_dict(problem.model.buffers, strict=False)
    module.net[1].momentum = 0.1
    robust = F.cross_entropy(module.train()(x_hat), problem.y)
    robust.backward()
    gradients = {k: p.grad for k, p in module.named_parameters()}
    total = robust.item() + lam * curvature.item()
    return total, curvature.item(), gradients, dict(module.named_buffers())


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("statistics", ["held", "running", "batch"])
def test_cure_training_is_the_formula(problem, start, fraction, statistics):
    objective = fr.cure_training(
        problem.model, attack, lam=0.7, h=1.5, fraction=fraction, statistics=statistics
    )
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    total, (buffers, metrics) = objective(*arguments)
    expected, curvature, gradients, after = by_hand(
        problem, start, lam=0.7, h=1.5, n=round(4 * fraction), statistics=statistics
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


def draws(problem, count):
    shape = (count, *problem.x.shape)
    return 2 * torch.rand(shape, generator=fr.generator(0, "noise")).double() - 1


@pytest.mark.parametrize("direction", ["classic", "random", "fgsm", "linf", "none"])
def test_every_direction_trains(problem, start, direction):
    objective = fr.cure_training(problem.model, attack, lam=1.0, h=1.0, direction=direction)
    noise = draws(problem, 1)
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


def psi_of(predict):
    return fr.psi(
        fr.cross_entropy(predict), fr.unconstrained(), step_size=2.0, steps=4, targeted=True
    )


def check_slope(problem, objective, params, *arguments):
    direction = random_direction(params)
    exact = inner(grad(objective, has_aux=True)(params, *arguments)[0], direction)
    numeric = directional_difference(lambda p: objective(p, *arguments)[0], params, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_psi_training_is_drift_plus_anchor(problem):
    label = (problem.y + 1) % 5
    objective = fr.psi_training(problem.model, psi_of, weight=3.0)
    arguments = (problem.model.buffers, problem.x, label, problem.y)
    total, (buffers, _) = objective(problem.params, *arguments)
    drift = fr.drift(psi_of(problem.model.predict))(problem.params, problem.x, label).mean()
    anchor = problem.loss(problem.params, problem.x, problem.y).mean()
    assert torch.allclose(total, drift + 3 * anchor)
    assert largest_difference(buffers, problem.model.buffers) == 0, "the statistics stay put"
    check_slope(problem, objective, problem.params, *arguments)


def test_psi_training_restores_and_sharpens(problem):
    """A start of its own, half of the batch, an L1 distance, and the entropy where ψ ends."""
    label = (problem.y + 1) % 5
    start = (problem.x + 0.05).clamp(0, 1)
    objective = fr.psi_training(
        problem.model, psi_of, distance=fr.l1, weight=2.0, entropy_weight=0.5, fraction=0.5
    )
    arguments = (problem.model.buffers, problem.x, label, problem.y, start)
    total, (_, metrics) = objective(problem.params, *arguments)
    psi = psi_of(problem.model.predict)
    drift = fr.drift(psi, distance=fr.l1, toward=problem.x[:2])
    assert torch.allclose(metrics["drift"], drift(problem.params, start[:2], label[:2]).mean())
    end = psi(problem.params, start[:2], label[:2])
    entropy = fr.entropy(problem.model.predict)(problem.params, end, label[:2]).mean()
    assert torch.allclose(metrics["entropy"], entropy)
    anchor = problem.loss(problem.params, problem.x, problem.y).mean()
    assert torch.allclose(total, metrics["drift"] + 0.5 * entropy + 2.0 * anchor)
    check_slope(problem, objective, problem.params, *arguments)


def test_learned_starts(problem):
    """Parameters and start images move together; the formula, and its slope in both."""
    rate = 5.0
    index = torch.tensor([2, 0, 1, 3])
    starts = problem.x.flip(0) * 0.9
    params = problem.params | {fr.STARTS: starts / rate}
    plain = fr.psi_training(problem.model, psi_of, weight=1.0)
    objective = fr.with_learned_starts(plain, rate=rate)
    arguments = (problem.model.buffers, problem.x, problem.y, problem.y, index)
    total, (_, metrics) = objective(params, *arguments)
    drift = fr.drift(psi_of(problem.model.predict))(problem.params, starts[index], problem.y)
    assert torch.allclose(metrics["drift"], drift.mean())
    assert total > metrics["drift"]
    check_slope(problem, objective, params, *arguments)
    moved = grad(objective, has_aux=True)(params, *arguments)[0][fr.STARTS]
    assert (moved.flatten(1).norm(dim=1) > 1e-6).all(), "every image has a gradient"


def test_without_an_anchor_the_drift_is_all(problem):
    objective = fr.psi_training(problem.model, psi_of, weight=0.0)
    total, (_, metrics) = objective(
        problem.params, problem.model.buffers, problem.x, problem.y, problem.y
    )
    assert set(metrics) == {"drift"}
    assert total == metrics["drift"]
    with pytest.raises(fr.FuncrobustError, match="fraction"):
        fr.psi_training(problem.model, psi_of, weight=0.0, fraction=0.0)


def test_psi_training_lowers_the_drift(problem):
    optim = fr.optimizer("SGD", 0.02, clip_norm=1.0)
    update = fr.make_update(fr.psi_training(problem.model, psi_of, weight=0.0), optim)
    state = fr.initial_state(problem.model, optim)
    drifts = []
    for _ in range(30):
        state, metrics = update(state, problem.x, problem.y, problem.y)
        drifts.append(float(metrics["drift"]))
    assert drifts[-1] < 0.8 * drifts[0]


def trades_by_hand(problem, start, *, beta, smoothing=0.0):
    """Zhang et al.: x̂ ascends the KL in evaluation mode; the loss is in training mode, x first."""
    module = problem.model.module()

    def kl(logits, natural):
        log_p = F.log_softmax(logits, 1)
        return F.kl_div(log_p, F.softmax(natural, 1), reduction="none").sum(1)

    x_hat = start.clone().requires_grad_()
    kl(module(x_hat), module(problem.x).detach()).sum().backward()
    x_hat = start + ALPHA * x_hat.grad.sign()
    x_hat = (problem.x + (x_hat - problem.x).clamp(-EPS, EPS)).clamp(0, 1)
    module.train()
    module.zero_grad()
    natural = module(problem.x)
    middle = {k: b.clone() for k, b in module.named_buffers()}
    robust = module(x_hat)
    total = F.cross_entropy(natural, problem.y, label_smoothing=smoothing)
    total = total + beta * kl(robust, natural).mean()
    total.backward()
    gradients = {k: p.grad for k, p in module.named_parameters()}
    accuracy = (robust.argmax(1) == problem.y).float().mean()
    return total, accuracy, gradients, middle, dict(module.named_buffers()), x_hat


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_trades_is_the_published_code(problem, start, smoothing):
    objective = fr.robust_training(problem.model, attack, trades=6.0, label_smoothing=smoothing)
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    expected, accuracy, gradients, _, after, _ = trades_by_hand(
        problem, start, beta=6.0, smoothing=smoothing
    )
    found, (buffers, metrics) = grad(objective, has_aux=True)(*arguments)
    assert torch.allclose(metrics["loss"], expected)
    assert metrics["accuracy"] == accuracy
    assert largest_difference(found, gradients) < 1e-12
    assert int(buffers["net.1.num_batches_tracked"]) == 2
    assert largest_difference(buffers, after) < 1e-12


def test_trades_regularisers_see_one_batchs_statistics(problem, start):
    """x̂'s, which goes last: not what the two passes together made of the running ones."""
    seen = []
    terms = {"probe": (1.0, lambda v: seen.append(v) or fr.cross_entropy(v.evaluating))}
    objective = fr.robust_training(
        problem.model, attack, trades=6.0, terms=terms, statistics="held"
    )
    objective(problem.params, problem.model.buffers, problem.x, problem.y, start)
    x_hat = trades_by_hand(problem, start, beta=6.0)[-1]
    module = problem.model.module().train()
    module.net[1].momentum = 1.0
    module(x_hat)
    expected = module.eval()(problem.x)
    assert (seen[0].evaluating(problem.params, problem.x) - expected).abs().max() < 1e-12


def test_each_view_reaches_the_terms(problem, start):
    seen = []

    def probe(views):
        seen.append(views)
        return lambda params, x, y: x.flatten(1).mean(1)

    objective = fr.robust_training(
        problem.model, attack, terms={"probe": (2.0, probe)}, fraction=0.5, statistics="running"
    )
    noise, growth = draws(problem, 3), torch.tensor(0.3)
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start, noise, growth)
    total, (_, metrics) = objective(*arguments)
    (views,) = seen
    evaluating = problem.module(problem.x)
    training = problem.model.module().train()(problem.x)
    assert (views.evaluating(problem.params, problem.x) - evaluating).abs().max() < 1e-12
    assert (views.training(problem.params, problem.x) - training).abs().max() < 1e-12
    x_hat = attack(problem.loss)(problem.params, start, problem.y, center=problem.x)
    assert torch.equal(views.perturbed, x_hat[:2])
    assert torch.equal(views.noise, noise[:, :2])
    assert views.growth is growth
    assert torch.allclose(metrics["probe"], problem.x[:2].mean())
    assert torch.allclose(total, metrics["loss"] + 2 * metrics["probe"])


def test_growth_scales_h(problem, start):
    arguments = (problem.model.buffers, problem.x, problem.y, start, None)
    grown, small = (
        grad(fr.cure_training(problem.model, attack, lam=1.0, h=h), has_aux=True)(
            problem.params, *arguments, growth
        )
        for h, growth in ((1.5, torch.tensor(0.2, dtype=torch.float64)), (0.3, 1.0))
    )
    assert torch.allclose(grown[1][1]["curvature"], small[1][1]["curvature"], rtol=1e-10)
    assert largest_difference(grown[0], small[0]) < 1e-12


def test_noise_is_drawn_for_each_image(problem, start):
    objective = fr.cure_training(problem.model, attack, lam=1.0, h=1.0, direction="random")
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    noise = draws(problem, 2)
    found = objective(*arguments, noise)[1][1]["curvature"]
    only_first = objective(*arguments, noise[:1])[1][1]["curvature"]
    assert found == only_first, "the first draw is CURE's"
    with pytest.raises(fr.FuncrobustError, match="noise"):
        objective(*arguments, noise[0])
    with pytest.raises(fr.FuncrobustError, match="noise"):
        objective(*arguments)


def test_terms_of_weight_0_are_not_evaluated(problem, start):
    def never(views):
        raise AssertionError

    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    objective = fr.robust_training(problem.model, attack, terms={"never": (0.0, never)})
    total, (_, metrics) = objective(*arguments)
    assert set(metrics) == {"loss", "accuracy"}
    assert total == metrics["loss"]
    assert total == fr.cure_training(problem.model, attack, lam=0.0, h=1.0)(*arguments)[0]


def test_cure_training_takes_more_terms(problem, start):
    arguments = (problem.params, problem.model.buffers, problem.x, problem.y, start)
    both = fr.cure_training(
        problem.model, attack, lam=0.5, h=1.0,
        terms={"clean": (0.25, lambda views: fr.cross_entropy(views.training))},
    )  # fmt: skip
    total, (_, metrics) = both(*arguments)
    clean = F.cross_entropy(problem.model.module().train()(problem.x), problem.y)
    assert torch.allclose(metrics["clean"], clean)
    assert torch.allclose(total, metrics["loss"] + 0.5 * metrics["curvature"] + 0.25 * clean)


def test_without_an_attack_it_trains_on_the_images(problem, start):
    objective = fr.robust_training(problem.model, None, label_smoothing=0.1)
    arguments = (problem.model.buffers, problem.x, problem.y, start)
    module = problem.model.module().train()
    F.cross_entropy(module(problem.x), problem.y, label_smoothing=0.1).backward()
    found, (buffers, _) = grad(objective, has_aux=True)(problem.params, *arguments)
    assert largest_difference(found, {k: p.grad for k, p in module.named_parameters()}) < 1e-12
    assert largest_difference(buffers, dict(module.named_buffers())) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {"mine": (-1.0, None)}}, "mine"),
        ({"terms": {"mine": (float("nan"), None)}}, "mine"),
        ({"fraction": 0.0}, "fraction"), ({"fraction": 1.1}, "fraction"),
        ({"trades": -1.0}, "trades"), ({"attack": None, "trades": 6.0}, "TRADES needs an attack"),
        ({"statistics": "lucky"}, "statistics"),
    ],
)  # fmt: skip
def test_bad_options(problem, options, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.robust_training(problem.model, **({"attack": attack} | options))


@pytest.mark.parametrize("options", [{"h": -1.0}, {"h": float("inf")}, {"lam": -1.0}])
def test_bad_cure_options(problem, options):
    with pytest.raises(fr.FuncrobustError):
        fr.cure_training(problem.model, attack, **({"lam": 1.0, "h": 1.0} | options))
