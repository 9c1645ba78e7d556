"""Each training attack against its paper's formula in plain autograd on the module."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import funcrobust as fr
from funcrobust.core.attacks import LargestOnly, fixed, from_images, perturbation_on
from funcrobust.core.perturbations.steps import share_of

EPS, ALPHA, Q = 8 / 255, 10 / 255, 0.35
BALL = fr.linf(EPS)
ATTACKS = {
    "rs_fgsm": fr.rs_fgsm(BALL, step_size=ALPHA),
    "n_fgsm": fr.n_fgsm(BALL),
    "zerograd": fr.zerograd(BALL, step_size=ALPHA, quantile=Q),
    "pgd_k": fr.pgd_k(BALL, step_size=EPS / 2, steps=3),
}


@pytest.fixture
def images(problem):
    """Pixels up to the bounds and on them."""
    return (1.8 * (problem.x - 0.5) + 0.5).clamp(0, 1)


def gradient(problem, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(problem.module(x), problem.y), x)[0]


def into_ball(x, delta):
    return (x + delta.clamp(-EPS, EPS)).clamp(0, 1)


def published(name, problem, x, start):
    if name == "pgd_k":
        for _ in range(3):
            start = into_ball(x, start + EPS / 2 * gradient(problem, start).sign() - x)
        return start
    g = gradient(problem, start)
    if name == "n_fgsm":
        return (start + EPS * g.sign()).clamp(0, 1)
    if name == "zerograd":
        g[g.abs() < torch.quantile(g.abs().flatten(1), Q, dim=1)[:, None, None, None]] = 0
    return into_ball(x, start + ALPHA * g.sign() - x)


def run(attack, problem, x, seed=0):
    start = attack.start(x, fr.generator(seed, "start"))
    return start, attack.perturb(problem.loss)(problem.params, start, problem.y, center=x)


@pytest.mark.parametrize("steps", [2, 3, 5, 9, 10, 50])
def test_steps_of_the_default_length_cross_the_ball(steps):
    w = torch.tensor([[1.0, -2.0, 0.5, -0.1]], dtype=torch.float64)
    x = torch.full((16, 4), 0.5, dtype=torch.float64)
    attack = fr.pgd_k(BALL, steps=steps)
    ascend = attack.perturb(lambda params, x, y: (x * w).sum(1))
    found = ascend({}, attack.start(x, fr.generator(0, "start")), torch.zeros(16), center=x)
    assert (found - x - EPS * w.sign()).abs().max() <= 1e-15  # the loss is linear: its corner


def test_ten_steps_and_more_are_a_quarter_of_the_radius_long_and_one_is_rs_fgsms():
    shares = [share_of(steps) for steps in (1, 2, 4, 5, 10, 20, 50)]
    assert shares == [1.25, 1.25, 0.625, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_the_papers_formula(name, problem, images):
    start, found = run(ATTACKS[name], problem, images)
    assert (found - published(name, problem, images, start)).abs().max() <= 1e-14


@pytest.mark.parametrize("name", ATTACKS)
def test_it_stays_where_it_may_go(name, problem, images):
    """N-FGSM may leave the ball, by its noise and its step, and does."""
    reach = 2 * EPS + EPS if name == "n_fgsm" else EPS
    start, found = run(ATTACKS[name], problem, images)
    for x in (start, found):
        assert x.min() >= 0
        assert x.max() <= 1
        assert (x - images).abs().max() <= reach + 1e-12
    assert (found - images).abs().max() > 0.9 * reach


@pytest.mark.parametrize(("name", "radius"), [("rs_fgsm", EPS), ("n_fgsm", 2 * EPS)])
def test_the_start_is_uniform(name, radius):
    x = torch.full((8, 3, 32, 32), 0.5)
    offset = (ATTACKS[name].start(x, fr.generator(3, "start")) - x) / radius
    share = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert (offset.flatten().quantile(share) - (2 * share - 1)).abs().max() < 0.02
    assert not torch.equal(offset[0], offset[1])


@pytest.mark.parametrize(
    ("make", "alpha"),
    [(fr.rs_fgsm, 10 / 255), (fr.n_fgsm, 8 / 255), (fr.zerograd, 10 / 255), (fr.pgd_k, 2 / 255)],
)
def test_the_default_step_size_is_the_papers(problem, make, alpha):
    """At their ε of 8/255."""
    found, expected = (
        run(attack, problem, problem.x)[1] for attack in (make(BALL), make(BALL, step_size=alpha))
    )
    assert (found - expected).abs().max() <= 1e-14
    other = run(make(BALL, step_size=0.9 * alpha), problem, problem.x)[1]
    assert (found - other).abs().max() > 1e-3, "else the step size would not be seen"


@pytest.mark.parametrize("make", [fr.rs_fgsm, fr.zerograd, fr.pgd_k])
def test_other_balls_have_attacks_too(problem, make):
    """Steps and starts are the ball's: a loss goes up, and nothing leaves the L2 ball."""
    start, found = run(make(fr.l2(0.5)), problem, problem.x)
    for x in (start, found):
        assert (x - problem.x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-12
    before, after = (problem.loss(problem.params, x, problem.y) for x in (start, found))
    assert (after > before).all()


def test_noise_and_step_size_of_n_fgsm(problem):
    ball = fr.linf(EPS, bounds=(-1.0, 2.0))
    attack = fr.n_fgsm(ball, step_size=0.5 * EPS, noise=0.0)
    start, found = run(attack, problem, problem.x)
    assert torch.equal(start, problem.x)
    expected = problem.x + 0.5 * EPS * gradient(problem, problem.x).sign()
    assert (found - expected).abs().max() <= 1e-14
    outside = problem.x + 1
    assert run(attack, problem, outside)[1].max() > 1


def test_zerograd_moves_the_largest_gradients_alone(problem):
    _, found = run(from_images(ATTACKS["zerograd"]), problem, problem.x)
    still = (found == problem.x).flatten(1)
    size = gradient(problem, problem.x).abs().flatten(1)
    assert (still.sum(1) >= math.floor(Q * size.shape[1])).all()
    for i in range(4):
        assert size[i][still[i]].max() < size[i][~still[i]].min()
    assert (still.sum(1) < size.shape[1] / 2).all()


def test_zerograd_with_quantile_0_is_rs_fgsm(problem, images):
    plain = run(ATTACKS["rs_fgsm"], problem, images)[1]
    assert torch.equal(
        run(fr.zerograd(BALL, step_size=ALPHA, quantile=0), problem, images)[1], plain
    )


def test_the_quantile_is_each_images_own(problem):
    """One image's gradients do not decide what another's keep."""
    together = run(from_images(ATTACKS["zerograd"]), problem, problem.x)[1]
    for i in range(4):
        loss = fr.cross_entropy(problem.model.predict)
        x, y = problem.x[i : i + 1], problem.y[i : i + 1]
        alone = ATTACKS["zerograd"].perturb(loss)(problem.params, x, y)
        assert torch.equal(alone, together[i : i + 1])


def test_largest_only_of_an_l2_ball():
    gradient = torch.tensor([[4.0, -1.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.4]]).double()
    found = LargestOnly(fr.l2(1.0), 0.5).steepest(gradient)
    expected = torch.tensor([[0.8, 0.0, 0.6, 0.0], [0.0, 0.0, -0.6, 0.8]]).double()
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("ball", [fr.linf(0.1), fr.l2(0.1)], ids=["linf", "l2"])
def test_the_quantile_is_that_within_the_mask(ball):
    """A linear loss is steepest outside; within, the 35 % of smallest weights stay where they are.

    Of 30 weights that rise evenly the quantile lies between the 11th and the 12th, of 20 between
    the 7th and the 8th.
    """
    w = torch.linspace(1, 2, 100, dtype=torch.float64)
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[0, :30] = mask[1, 40:60] = True
    x = torch.full((2, 100), 0.5, dtype=torch.float64)
    moved = torch.zeros_like(mask)
    moved[0, 11:30] = moved[1, 47:60] = True
    steepest = ball.steepest(torch.where(moved, w, 0.0))
    ascend = fr.zerograd(fr.masked(ball, mask)).perturb(lambda params, x, y: (x * w).sum(1))
    found = ascend({}, x, torch.zeros(2))
    assert torch.equal(found != x, moved)
    assert (found - x - 0.1 * steepest).abs().max() <= 1e-15


def test_a_mask_that_does_not_fit_is_refused_before_its_quantile():
    attack = fr.zerograd(fr.masked(BALL, torch.ones(3, dtype=torch.bool)))
    with pytest.raises(fr.FuncrobustError, match="does not broadcast"):
        attack.perturb(lambda params, x, y: x.sum(1))({}, torch.ones(2, 4), torch.zeros(2))


def test_from_images_starts_at_the_images(problem):
    attack = from_images(ATTACKS["rs_fgsm"])
    start, found = run(attack, problem, problem.x)
    assert start is problem.x
    expected = into_ball(problem.x, ALPHA * gradient(problem, problem.x).sign())
    assert (found - expected).abs().max() <= 1e-14


def test_an_attack_is_built_on_a_loss_and_a_perturbation_has_its_own(problem):
    seen = []
    attack = fr.Attack(lambda x, _: x, lambda loss: seen.append(loss) or fixed(problem.x))
    assert perturbation_on(attack, problem.loss)(problem.params, None, None) is problem.x
    assert seen == [problem.loss]
    perturb = fr.pgd(problem.loss, BALL, step_size=ALPHA, steps=1)
    assert perturbation_on(perturb, None) is perturb


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fr.zerograd(BALL, step_size=ALPHA, quantile=1.0), "quantile"),
        (lambda: fr.zerograd(BALL, step_size=ALPHA, quantile=-0.1), "quantile"),
        (lambda: fr.zerograd(BALL, step_size=ALPHA, quantile=math.nan), "quantile"),
        (lambda: fr.n_fgsm(BALL, noise=-1.0), "noise"),
        (lambda: fr.n_fgsm(BALL, noise=math.inf), "noise"),
        (lambda: fr.n_fgsm(fr.l2(0.5)), "L-infinity"),
        (lambda: fr.n_fgsm(fr.smooth_linf(0.5)), "L-infinity"),
        (lambda: fr.rs_fgsm(BALL, step_size=-1.0), "step_size"),
        (lambda: fr.zerograd(BALL, step_size=math.nan), "step_size"),
        (lambda: fr.rs_fgsm(fr.unconstrained()), "no finite radius"),
        (lambda: fr.pgd_k(fr.l2(math.inf)), "no finite radius"),
        (lambda: fr.n_fgsm(fr.linf(math.inf)), "no finite radius"),
        (lambda: fr.pgd_k(BALL, step_size=ALPHA, steps=-1).perturb(None), "steps"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        make()
