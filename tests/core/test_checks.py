"""Every check fails on a defence that is broken its way, and passes on an honest network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import funcrobust as fr
from funcrobust import checkpoints
from funcrobust.core import evaluation
from funcrobust.core.evaluation.checks import CHECKS, Case
from funcrobust.core.evaluation.verdict import verdict

EPS = 0.06
BALL = fr.linf(EPS)


@pytest.fixture(scope="module")
def trained():
    """A small adversarially trained network on blobs: honest, and fooled now and then."""
    from problems import TinyNet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fr.functionalize(TinyNet())
    draw = torch.Generator().manual_seed(5)
    y = torch.randint(5, (240,), generator=draw)
    centers = torch.rand(5, 3, 8, 8, generator=draw)
    x = (0.35 * centers[y] + 0.3 + 0.15 * torch.randn(240, 3, 8, 8, generator=draw)).clamp(0, 1)
    optim = fr.optimizer("Adam", 5e-3)
    attack = fr.pgd_k(BALL, steps=3)

    def objective(params, buffers, x, y):
        loss = fr.cross_entropy(model.with_buffers(buffers))
        robust = fr.adversarial(loss, attack, start=x)
        return robust(params, x, y).mean(), (buffers, {})

    update, state = fr.make_update(objective, optim), fr.initial_state(model, optim)
    for _ in range(60):
        state, _ = update(state, x, y)
    return model, state.params, x, torch.where(torch.arange(240) % 15 == 0, (y + 1) % 5, y)


def evaluated(predict, params, x, y, *, ball=BALL, adversary=None, **case):
    adversary = adversary or evaluation.sharp_pgd(ball, step_size=EPS / 4)
    outcome = evaluation.attack_all(predict, params, x, y, {"it": adversary})
    numbers = torch.arange(len(y))
    return Case(predict, params, x, y, ball, outcome, numbers, step_size=EPS / 4, **case)


@pytest.fixture(scope="module")
def honest(trained):
    model, params, x, y = trained
    other = {k: v + 0.02 * torch.randn(v.shape, generator=torch.Generator().manual_seed(2))
             for k, v in params.items()}  # fmt: skip
    return evaluated(
        model.predict, params, x, y, surrogate=(model.predict, other),
        stronger=evaluation.sharp_pgd(BALL, step_size=EPS / 8, steps=60),
    )  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_an_honest_network_passes(honest, name):
    assert 0.2 < honest.outcome.robust.float().mean() < honest.outcome.clean.float().mean() < 1
    check = CHECKS[name](honest)
    assert check.passed, check


def test_the_verdict_on_it_holds_or_names_what_was_not_tried(honest):
    checks = [check(honest) for check in CHECKS.values()]
    assert verdict(checks, ()) == ("holds", ())
    assert verdict(checks, ["AutoAttack"]) == ("upper bound", ("not tried: AutoAttack",))


def broken(trained, predict, **options):
    _, params, x, y = trained
    return evaluated(predict, params, x, y, **options)


def failed(case):
    found = [check(case) for check in CHECKS.values()]
    return {name for name, check in zip(CHECKS, found, strict=True) if check.passed is False}, found


def test_quantised_inputs(trained):
    """Steps of an eighth, rounded: the slope through the rounding is 0."""
    model, *_ = trained
    case = broken(trained, lambda p, x: model.predict(p, (x * 8).round() / 8))
    names, found = failed(case)
    assert "gradients" in names
    assert verdict(found, ()).word == "suspicious"


def test_quantised_inputs_with_a_slope_of_their_own(trained):
    """As before, and the slope is there but wrong: gradient steps climb nothing."""
    model, *_ = trained

    def predict(p, x):
        quantised = (x * 8).round() / 8
        return model.predict(p, quantised.detach() - 1e-3 * (x - x.detach()))

    names, found = failed(broken(trained, predict))
    assert names & {"climbs", "everything", "without_gradients"}
    assert verdict(found, ()).word == "suspicious"


def test_saturated_logits(trained):
    """Rounded to a grid: between its lines the logits do not move."""
    model, *_ = trained
    case = broken(trained, lambda p, x: (4 * model.predict(p, x)).round())
    names, found = failed(case)
    assert "gradients" in names
    assert verdict(found, ()).word == "suspicious"


def test_a_scale_on_the_logits_is_no_defence(trained, honest):
    """What masks cross-entropy masks nothing here: the figure stays, and the checks pass."""
    model, *_ = trained
    case = broken(trained, lambda p, x: 1e4 * model.predict(p, x))
    assert abs(int(case.outcome.robust.sum()) - int(honest.outcome.robust.sum())) <= 2
    assert failed(case)[0] <= {"effort"}


def test_noise_on_the_input(trained):
    model, *_ = trained
    case = broken(trained, lambda p, x: model.predict(p, x + 0.1 * torch.randn_like(x)))
    names, found = failed(case)
    assert "deterministic" in names
    assert verdict(found, ()).word == "invalid"


def test_noise_that_is_averaged_is_no_defence(trained):
    """As before, the mean of counted draws under attack: nothing invalid is left."""

    class Noisy(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x + 0.1 * torch.randn_like(x))

    inner, params, *_ = trained
    model = fr.functionalize(Noisy(inner.module(params)))
    keys = torch.stack([fr.key(0, "draws", k) for k in range(8)])
    _, _, x, y = trained
    case = evaluated(fr.expectation(model, keys), model.params, x, y)
    assert failed(case)[0] <= {"effort"}


def test_normalisation_outside_the_ball(trained):
    """The images come normalised already, and the ball is told of no bounds."""
    model, params, x, y = trained
    case = evaluated(
        lambda p, z: model.predict(p, z * 0.25 + 0.5), params, (x - 0.5) / 0.25, y,
        ball=fr.linf(EPS, bounds=None),
    )  # fmt: skip
    names, found = failed(case)
    assert "range_of_images" in names
    assert verdict(found, ()).word == "invalid"


def test_training_mode_left_on(trained):
    model, *_ = trained

    def predict(params, x):
        return model.predict_train(params, model.buffers, x)[0]

    names, found = failed(broken(trained, predict))
    assert "alone" in names
    assert verdict(found, ()).word == "invalid"


def test_a_detached_logit(trained):
    model, *_ = trained
    names, found = failed(broken(trained, lambda p, x: model.predict(p, x).detach()))
    assert "gradients" in names
    assert verdict(found, ()).word == "suspicious"


def test_probabilities_for_logits(trained):
    model, *_ = trained
    names, _ = failed(broken(trained, lambda p, x: model.predict(p, x).softmax(-1)))
    assert "logits" in names


def test_an_adversary_that_leaves_the_ball(trained):
    model, params, x, y = trained
    wide = evaluation.sharp_pgd(fr.linf(2 * EPS), step_size=EPS / 2)
    names, found = failed(evaluated(model.predict, params, x, y, adversary=wide))
    assert "in_the_ball" in names
    assert verdict(found, ()).word == "invalid"


def test_an_attack_that_is_too_weak(trained, honest):
    model, params, x, y = trained
    weak = evaluation.Pgd(BALL, EPS / 100, steps=1)
    case = evaluated(
        model.predict, params, x, y, adversary=weak, stronger=honest.stronger,
        surrogate=honest.surrogate,
    )  # fmt: skip
    names, _ = failed(case)
    assert {"effort", "without_gradients", "transferred"} <= names


def test_images_that_were_changed_on_the_way(honest):
    """The saved images are not those that fooled the network."""
    outcome = honest.outcome._replace(images=honest.x)
    assert {"fools_again", "in_bytes"} <= failed(replace(honest, outcome=outcome))[0]


@pytest.mark.parametrize(("kept", "n", "passes"), [(1, 3, True), (8, 20, False)])
def test_few_images_in_8_bits_fail_by_more_than_chance(honest, kept, n, passes):
    """Clean images stand for what rounding leaves of an attack that ends at the border."""
    images = honest.outcome.images.clone()
    seen = honest.predict(honest.params, (images * 255).round() / 255).argmax(-1)
    places = ((honest.outcome.fell_to > 0) & (seen != honest.y)).nonzero().squeeze(1)[:n]
    assert len(places) == n
    images[places[kept:]] = honest.x[places[kept:]]
    fell_to = torch.full_like(honest.outcome.fell_to, -1).index_fill(0, places, 1)
    outcome = honest.outcome._replace(images=images, fell_to=fell_to)
    found = CHECKS["in_bytes"](replace(honest, outcome=outcome))
    assert (found.passed, found.figure) == (passes, f"{kept} of {n} survive")


def test_an_outcome_that_radius_0_does_not_give(honest):
    fell_to = torch.zeros_like(honest.outcome.fell_to)
    assert "nothing" in failed(replace(honest, outcome=honest.outcome._replace(fell_to=fell_to)))[0]


def test_what_cannot_be_tried_says_why(honest):
    case = replace(honest, stronger=None, surrogate=None, ball=fr.unconstrained())
    answers = {name: CHECKS[name](case) for name in
               ("effort", "transferred", "without_gradients", "nothing", "everything")}  # fmt: skip
    assert all(check.passed is None and check.figure for check in answers.values())
    assert answers["effort"].figure == "no stronger attack was given"


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_every_shipped_network_passes(cifar, name):
    """The honest ones, in float32, on real images; the sharper attack finds nothing on few."""
    network, card = checkpoints.load(name)
    model = fr.functionalize(network)
    numbers = torch.randperm(len(cifar.y_test), generator=fr.generator(0, "test"))[:16]
    x, y, ball = cifar.x_test[numbers] / 255, cifar.y_test[numbers], fr.linf(card.epsilon)
    adversary = evaluation.sharp_pgd(ball, step_size=card.epsilon / 4)
    outcome = evaluation.attack_all(
        model.predict, model.params, x, y, {"it": adversary}, numbers=numbers
    )
    case = Case(
        model.predict, model.params, x, y, ball, outcome, numbers, few=8,
        step_size=card.epsilon / 4,
        stronger=evaluation.sharp_pgd(ball, step_size=card.epsilon / 8, steps=40, sharpness=(20,)),
    )  # fmt: skip
    failing = [check for check in (ask(case) for ask in CHECKS.values()) if check.passed is False]
    assert not failing


def test_features_without_bounds_are_not_called_invalid():
    draw = torch.Generator().manual_seed(0)
    x, w = 3 * torch.randn(40, 6, generator=draw), torch.randn(6, 4, generator=draw)
    predict = lambda params, x: x @ params["w"]  # noqa: E731
    for bounds, width in ((None, "unbounded"), ((-50.0, float("inf")), "unbounded")):
        ball = fr.linf(0.1, bounds=bounds)
        case = evaluated(predict, {"w": w}, x, (x @ w).argmax(1), ball=ball)
        assert CHECKS["range_of_images"](case).passed is not False
        everything = CHECKS["everything"](case)
        assert everything.passed is None
        assert width in everything.figure


@pytest.mark.parametrize("step", [0.25, 1.0, 3.0])
def test_a_long_step_does_not_look_like_a_loss_that_stands_still(step):
    """A linear network's loss rises until the ball's boundary, and not on it."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.rand(40, 6, generator=draw), torch.randn(6, 4, generator=draw)
    predict = lambda params, x: x @ params["w"]  # noqa: E731
    ball = fr.linf(0.02)
    case = evaluated(predict, {"w": w}, x, (x @ w).argmax(1), ball=ball)
    assert CHECKS["climbs"](replace(case, step_size=step * ball.radius)).passed


def test_all_of_them_in_their_order_and_by_place_where_no_numbers_are_given():
    """What `evaluate` ends in, in three lines of Python."""
    model = fr.functionalize(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    x = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    y = model.predict(model.params, x).argmax(1)
    ball = fr.linf(EPS)
    pgd = {"pgd": evaluation.Pgd(ball, EPS / 4, steps=5)}
    outcome = evaluation.attack_all(model.predict, model.params, x, y, pgd)
    case = evaluation.Case(model.predict, model.params, x, y, ball, outcome)
    told: list[int] = []
    found = evaluation.run_checks(case, advance=told.append)
    assert told == [1] * len(evaluation.CHECKS)
    numbered = replace(case, numbers=torch.arange(12))
    assert found == [check(numbered) for check in evaluation.CHECKS.values()]
    assert evaluation.verdict(found, not_tried=["square"]).word != "holds"
