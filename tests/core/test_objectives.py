"""The loss algebra: sums, means, and operators inside operators."""

from __future__ import annotations

from functools import partial

import compositions
import pytest
import torch
import torch.nn.functional as F
from problems import directional_difference, inner, largest_difference, random_direction
from torch.func import grad

import funcrobust as fr
from funcrobust.core.attacks import fixed


def test_the_designs_example_runs_and_is_exact(problem):
    """DESIGN.md's composition, differentiated as one, against finite differences."""
    loss = fr.cross_entropy(problem.model.predict)
    pgd = fr.pgd(loss, fr.linf(8 / 255), step_size=2 / 255, steps=3)
    psi = fr.psi(loss, fr.l2(float("inf")), step_size=0.1, steps=4, targeted=True)
    held = fr.adversarial(loss, fixed(pgd(problem.params, problem.x, problem.y)))
    total = fr.weighted_sum((1.0, held), (10.0, fr.cure(loss, h=3.0)), (0.5, fr.drift(psi)))
    objective = fr.mean(total)
    direction = random_direction(problem.params)
    exact = inner(grad(objective)(problem.params, problem.x, problem.y), direction)
    numeric = directional_difference(
        lambda p: objective(p, problem.x, problem.y), problem.params, direction
    )
    assert abs(exact - numeric) <= 1e-6 * abs(exact)
    # The attack itself is held constant, so swapping it for its own result changes no gradient.
    live = fr.weighted_sum(
        (1.0, fr.adversarial(loss, pgd)), (10.0, fr.cure(loss, h=3.0)), (0.5, fr.drift(psi))
    )
    found = grad(fr.mean(live))(problem.params, problem.x, problem.y)
    expected = grad(objective)(problem.params, problem.x, problem.y)
    assert largest_difference(found, expected) <= 1e-12


def test_weighted_sum_is_the_sum(problem):
    margin = fr.margin(problem.model.predict)
    total = fr.weighted_sum((2.0, problem.loss), (0.5, margin), (0.0, None))
    arguments = (problem.params, problem.x, problem.y)
    assert torch.allclose(
        total(*arguments), 2 * problem.loss(*arguments) + 0.5 * margin(*arguments)
    )
    assert torch.allclose(fr.mean(total)(*arguments), total(*arguments).mean())


def test_operators_nest(problem):
    """CURE of an adversarial loss is curvature, not zero: δ is held constant, x is not."""
    pgd = fr.pgd(problem.loss, fr.linf(0.03), step_size=0.01, steps=2)
    robust = fr.adversarial(problem.loss, pgd)
    assert (fr.cure(robust, 1.0)(problem.params, problem.x, problem.y) > 1e-4).all()
    delta = pgd(problem.params, problem.x, problem.y) - problem.x
    found = fr.input_gradient(robust)(problem.params, problem.x, problem.y)
    expected = fr.input_gradient(problem.loss)(problem.params, problem.x + delta, problem.y)
    assert (found - expected).abs().max() <= 1e-12
    moved = fr.pgd(robust, fr.l2(1.0), step_size=0.1, steps=2)(problem.params, problem.x, problem.y)
    assert (moved - problem.x).abs().max() > 1e-3


def test_adversarial_from_a_random_start(problem):
    ball = fr.linf(0.03)
    start = ball.sample(problem.x, fr.generator(0, "start"))
    fgsm = fr.fgsm(problem.loss, ball, step_size=0.04)
    found = fr.adversarial(problem.loss, fgsm, start=start)(problem.params, problem.x, problem.y)
    end = fgsm(problem.params, start, problem.y, center=problem.x)
    assert torch.allclose(found, problem.loss(problem.params, end, problem.y))
    assert (found > problem.loss(problem.params, problem.x, problem.y)).all()


def seen_by(problem, build):
    """Which images a loss is evaluated on, inside ``build(loss)``."""
    seen = []

    def loss(params, x, y):
        seen.append(x)
        return problem.loss(params, x, y)

    build(loss)(problem.params, problem.x, problem.y)
    return seen


def test_the_perturbed_images_are_used_to_the_bit(problem):
    """Not x + (x̂ − x), which rounds: what was attacked is what is trained on."""
    x_hat = problem.x.flip(0) / 1000
    assert not torch.equal(problem.x + (x_hat - problem.x), x_hat), "else this shows nothing"
    (seen,) = seen_by(problem, lambda loss: fr.adversarial(loss, fixed(x_hat)))
    assert torch.equal(seen, x_hat)
    images = []

    def predict(params, x):
        images.append(x)
        return problem.model.predict(params, x)

    fr.trades(predict, fixed(x_hat))(problem.params, problem.x, problem.y)
    assert len(images) == 2, "x is looked at once, for both terms"
    assert torch.equal(images[0], problem.x)
    assert torch.equal(images[1], x_hat)


def test_an_attack_ascends_the_loss_and_a_perturbation_its_own(problem):
    """Of the margin: an Attack is built on it, a Perturbation stays on the cross-entropy."""
    ball, margin = fr.linf(0.03), fr.margin(problem.model.predict)
    attack = fr.Attack(lambda x, _: x, lambda loss: fr.pgd(loss, ball, step_size=0.01, steps=4))
    arguments = (problem.params, problem.x, problem.y)
    ends = {
        "attack": attack.perturb(margin)(*arguments),
        "perturbation": attack.perturb(problem.loss)(*arguments),
    }
    assert not torch.equal(*ends.values()), "else this shows nothing"
    found = {
        "attack": fr.adversarial(margin, attack),
        "perturbation": fr.adversarial(margin, attack.perturb(problem.loss)),
    }
    for kind, end in ends.items():
        expected = margin(problem.params, end, problem.y)
        assert torch.equal(found[kind](*arguments), expected)


def test_the_attack_is_constant(problem):
    """No derivative flows through x̂, whose search depends on θ: not by the smoothest steps."""
    psi = fr.psi(problem.loss, fr.l2(1.0), step_size=0.2, steps=2, derivative=fr.unrolled())
    x_hat = psi(problem.params, problem.x, problem.y)
    found, held, through = (
        grad(fr.mean(loss))(problem.params, problem.x, problem.y)
        for loss in (
            fr.adversarial(problem.loss, psi),
            fr.at(problem.loss, x_hat, problem.y),
            fr.through(psi, problem.loss),
        )
    )
    assert largest_difference(found, held) <= 1e-12
    assert largest_difference(found, through) > 1e-4


def test_through_is_the_loss_where_psi_ends_with_its_derivative(problem):
    psi = fr.psi(problem.loss, fr.l2(5.0), step_size=0.2, steps=3, targeted=True)
    loss = fr.entropy(problem.model.predict)
    term = fr.mean(fr.through(psi, loss))
    end = psi(problem.params, problem.x, problem.y)
    assert torch.equal(
        term(problem.params, problem.x, problem.y), loss(problem.params, end, problem.y).mean()
    )
    step = random_direction(problem.params)
    exact = inner(grad(term)(problem.params, problem.x, problem.y), step)
    numeric = directional_difference(lambda p: term(p, problem.x, problem.y), problem.params, step)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_at_is_the_loss_of_other_examples(problem):
    """Whatever it is given: so a sum may be of unlike batches, and its slope in x is 0."""
    x, y = problem.x[1:3], (problem.y[1:3] + 1) % 5
    loss = fr.at(problem.loss, x, y)
    expected = problem.loss(problem.params, x, y)
    assert torch.equal(loss(problem.params, problem.x, problem.y), expected)
    assert torch.equal(loss(problem.params, None, None), expected)
    own = fr.at(problem.loss, problem.x.flip(0), problem.y)
    assert fr.input_gradient(own)(problem.params, problem.x, problem.y).abs().max() == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda loss: fr.mean(loss), lambda loss: fr.weighted_sum((1.0, loss)),
        lambda loss: fr.mean(fr.adversarial(loss, fr.rs_fgsm(fr.linf(0.03)))),
        lambda loss: fr.pgd(loss, fr.linf(0.03), step_size=0.01, steps=1),
        lambda loss: fr.pgd(loss, fr.linf(0.03), step_size=0.01, steps=1, use_best=True),
        lambda loss: fr.psi(loss, fr.l2(1.0), step_size=0.01, steps=1),
        lambda loss: fr.input_gradient(loss), lambda loss: fr.input_gradient_norm(loss),
        lambda loss: (lambda p, x, y: fr.objective(loss)(p, {}, x, y)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["mean", "column"])
def test_a_reduced_loss_is_refused_with_a_line(problem, build, kind):
    """It would be differentiated without complaint, B times too small."""

    def reduced(*arguments):
        values = problem.loss(*arguments)
        return values.mean() if kind == "mean" else values[:, None]

    with pytest.raises(fr.FuncrobustError, match=r"per example, \(B,\) = \(4,\).*reduction"):
        build(reduced)(problem.params, problem.x, problem.y)


def test_bad_sums(problem):
    with pytest.raises(fr.FuncrobustError, match="weight"):
        fr.weighted_sum((-1.0, problem.loss))
    with pytest.raises(fr.FuncrobustError, match="positive weight"):
        fr.weighted_sum((0.0, problem.loss))
    reduced = fr.weighted_sum((1.0, problem.loss), (1.0, fr.mean(problem.loss)))
    with pytest.raises(fr.FuncrobustError, match="per example"):
        reduced(problem.params, problem.x, problem.y)


def kl_from(module, x, natural):
    """KL(p(natural) ‖ p(x)), as the published code computes it."""
    return F.kl_div(F.log_softmax(module(x), 1), F.softmax(natural, 1), reduction="none").sum(1)


def test_trades_is_the_published_code(problem):
    """Zhang et al.'s trades_loss in evaluation mode, value and derivative; x̂ by PGD on the KL."""
    eps, alpha, beta = 0.05, 0.02, 3.0
    generator = torch.Generator().manual_seed(0)
    start = problem.x + 0.001 * torch.randn(problem.x.shape, generator=generator).double()
    module = problem.model.module()
    natural = module(problem.x).detach()
    x_hat = start
    for _ in range(3):
        x_hat = x_hat.detach().requires_grad_()
        slope = torch.autograd.grad(kl_from(module, x_hat, natural).sum(), x_hat)[0]
        x_hat = x_hat.detach() + alpha * slope.sign()
        x_hat = x_hat.clamp(problem.x - eps, problem.x + eps).clamp(0, 1)
    logits = module(problem.x)
    expected = F.cross_entropy(logits, problem.y, reduction="none")
    expected = expected + beta * kl_from(module, x_hat, logits)
    expected.mean().backward()
    attack = fr.pgd_k(fr.linf(eps), step_size=alpha, steps=3)
    loss = fr.trades(problem.model.predict, attack, beta=beta, start=start)
    found = loss(problem.params, problem.x, problem.y)
    assert (found - expected).abs().max() <= 1e-12
    assert (expected - problem.loss(problem.params, problem.x, problem.y)).min() > 1e-4
    slopes = grad(fr.mean(loss))(problem.params, problem.x, problem.y)
    wanted = {k: p.grad for k, p in module.named_parameters()}
    assert largest_difference(slopes, wanted) <= 1e-12


def test_trades_differentiates_both_distributions(problem):
    """With x̂ given: the finite difference of its value, p(x) moving too."""
    x_hat = (problem.x + 0.1).clamp(0, 1)
    trades = fr.trades(problem.model.predict, fixed(x_hat))
    loss = fr.mean(trades)
    step = random_direction(problem.params)
    exact = inner(grad(loss)(problem.params, problem.x, problem.y), step)
    numeric = directional_difference(lambda p: loss(p, problem.x, problem.y), problem.params, step)
    assert abs(exact - numeric) <= 1e-6 * abs(exact)
    nested = fr.input_gradient(trades)(problem.params, problem.x, problem.y)
    x = problem.x.clone().requires_grad_()
    logits = problem.module(x)
    by_hand = (
        F.cross_entropy(logits, problem.y, reduction="sum")
        + 6 * kl_from(problem.module, x + (x_hat - problem.x), logits).sum()
    )
    assert (nested - torch.autograd.grad(by_hand, x)[0]).abs().max() <= 1e-12


def test_trades_without_its_kl_is_the_cross_entropy(problem):
    """Whether the search moves nothing or β = 0."""
    attack = fr.pgd_k(fr.linf(0.1), step_size=0.05, steps=2)
    start = problem.x + 0.01
    plain = F.cross_entropy(problem.module(problem.x), problem.y, reduction="none")
    for loss in (
        fr.trades(problem.model.predict, fixed(problem.x)),
        fr.trades(problem.model.predict, attack, beta=0.0, start=start),
    ):
        found = loss(problem.params, problem.x, problem.y)
        assert (found - plain).abs().max() <= 1e-12


def test_what_trades_fits_on_the_images_may_be_another_loss(problem):
    """A smoothed cross-entropy, the margin: of the same logits."""
    x_hat = (problem.x + 0.1).clamp(0, 1)
    kl = kl_from(problem.module, x_hat, problem.module(problem.x))
    for natural in (partial(fr.cross_entropy, label_smoothing=0.2), fr.margin):
        loss = fr.trades(problem.model.predict, fixed(x_hat), beta=2.0, natural=natural)
        fit = natural(problem.model.predict)(problem.params, problem.x, problem.y)
        found = loss(problem.params, problem.x, problem.y)
        assert (found - fit - 2.0 * kl).abs().max() <= 1e-12


def test_a_perturbation_of_trades_is_its_own_search(problem):
    """One given ready-made is used as it is, from the start."""
    start = problem.x + 0.01
    fgsm = fr.fgsm(problem.loss, fr.linf(0.05), step_size=0.05)
    x_hat = fgsm(problem.params, start, problem.y, center=problem.x)
    found, expected = (
        fr.trades(problem.model.predict, attack, start=start)(problem.params, problem.x, problem.y)
        for attack in (fgsm, fixed(x_hat))
    )
    assert torch.equal(found, expected)


def test_helper_is_hats_formula(problem):
    """ℓ(x + 2(x̂ − x), ŷ), ŷ another network's decision on x̂; the images may leave the bounds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        toward = (problem.x + 0.4 * torch.sign(torch.randn_like(problem.x))).clamp(0, 1)
        standard = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double()
    beyond = problem.x + 2 * (toward - problem.x)
    assert beyond.max() > 1
    labels = standard(toward).argmax(1)
    assert not torch.equal(labels, problem.y)
    module = problem.model.module()
    expected = F.cross_entropy(module(beyond), labels, reduction="none")
    loss = fr.helper_examples(problem.loss, toward=toward, labels=lambda x: standard(x).argmax(1))
    assert torch.allclose(loss(problem.params, problem.x, problem.y), expected)
    expected.mean().backward()
    slopes = grad(fr.mean(loss))(problem.params, problem.x, problem.y)
    wanted = {k: p.grad for k, p in module.named_parameters()}
    assert largest_difference(slopes, wanted) <= 1e-12
    on_it = fr.helper_examples(
        problem.loss, toward=toward, labels=lambda x: problem.y, extrapolate=1.0
    )
    at_x_hat = F.cross_entropy(problem.module(toward), problem.y, reduction="none")
    assert torch.allclose(on_it(problem.params, problem.x, problem.y), at_x_hat)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights_of_trades_and_helper(problem, value):
    with pytest.raises(fr.FuncrobustError, match="beta"):
        fr.trades(problem.model.predict, fixed(problem.x), beta=value)
    with pytest.raises(fr.FuncrobustError, match="extrapolate"):
        fr.helper_examples(problem.loss, toward=problem.x, labels=lambda x: None, extrapolate=value)


def test_curvature_of_an_attacked_loss(problem):
    """CURE looks at x + z, which may lie outside the bounds of the ball that is nested in it."""
    x = problem.x.clone()
    x[:, :, 0] = 0.0
    pgd = fr.pgd(problem.loss, fr.linf(0.1), step_size=0.05, steps=2)
    psi = fr.psi(problem.loss, fr.l2(1.0), step_size=0.1, steps=2, derivative=fr.unrolled())
    for nested in (fr.adversarial(problem.loss, pgd), fr.drift(psi)):
        values = fr.cure(nested, h=4.0)(problem.params, x, problem.y)
        assert torch.isfinite(values).all()
        assert (values > 0).any()


def test_restoration_of_an_image_that_is_not_degraded_has_a_derivative(problem):
    """The amount of degradation counts as 0.01 at least, and its slope there as 0."""
    psi = fr.psi(problem.loss, fr.l2(1.0), step_size=0.1, steps=1, targeted=True)
    loss = fr.restoration(psi, problem.x)
    slope = grad(lambda x: loss(problem.params, x, problem.y).sum())(problem.x)
    assert slope.isfinite().all()


def two_networks():
    """The mean of two networks' logits, by nested parameters and by flat ones."""
    first, second = compositions.dense(6, 5, 3), compositions.dense(6, 4, 3, seed=1)

    def nested(params, x):
        return (first.predict(params["a"], x) + second.predict(params["b"], x)) / 2

    def flat(params, x):
        a, b = ({n[2:]: p for n, p in params.items() if n[:2] == which} for which in ("a/", "b/"))
        return nested({"a": a, "b": b}, x)

    params = {"a": first.params, "b": second.params}
    return (nested, params), (flat, {f"{w}/{n}": p for w in params for n, p in params[w].items()})


BOUND = fr.linf(0.1, bounds=None)
OVER_TWO = {
    "adversarial": lambda predict: fr.adversarial(
        fr.cross_entropy(predict), fr.pgd(fr.cross_entropy(predict), BOUND, step_size=0.05, steps=2)
    ),
    "trades": lambda predict: fr.trades(
        predict, fr.pgd(fr.cross_entropy(predict), BOUND, step_size=0.05, steps=2)
    ),
    **{
        f"cure, {kind}": lambda predict, kind=kind: fr.cure(
            fr.cross_entropy(predict), 0.5, derivative=kind
        )
        for kind in ("shared", "batched", "forward", "central", "one-sided")
    },
    "gradient alignment": lambda predict: fr.gradient_alignment(
        fr.cross_entropy(predict), toward=torch.linspace(0, 1, 24, dtype=torch.float64).view(4, 6)
    ),
    **{
        f"drift, {name}": lambda predict, derivative=derivative: fr.drift(
            fr.psi(
                fr.cross_entropy(predict), fr.l2(1.0, bounds=None), step_size=0.2, steps=3,
                derivative=derivative,
            )
        )
        for name, derivative in {
            "adjoint": fr.adjoint(), "unrolled": fr.unrolled(), "truncated": fr.truncated(2),
            "one step": fr.one_step(),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("build", OVER_TWO.values(), ids=OVER_TWO)
def test_dicts_of_parameters_may_nest(build):
    (nested, params), (flat, flattened) = two_networks()
    x = torch.rand(4, 6, generator=fr.generator(0, "two"), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    found = grad(fr.mean(build(nested)))(params, x, y)
    expected = grad(fr.mean(build(flat)))(flattened, x, y)
    assert max(g.abs().max() for g in expected.values()) > 1e-6
    for name, g in expected.items():
        assert torch.allclose(found[name[0]][name[2:]], g, rtol=1e-10, atol=1e-14)


def test_an_updates_parameters_may_not_and_two_networks_train_all_the_same():
    (_, params), (flat, flattened) = two_networks()
    optim = fr.optimizer("sgd", 0.1)
    with pytest.raises(fr.FuncrobustError, match="one flat dict of tensors"):
        fr.initial_state(params, optim)
    update = fr.make_update(fr.objective(fr.cross_entropy(flat)), optim)
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    after, _ = update(fr.initial_state(flattened, optim), x, y)
    assert all(not torch.equal(after.params[name], p) for name, p in flattened.items())
