"""Losses and distances against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import largest
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core.losses import kl

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 3.5]], dtype=torch.float64)
Y = torch.tensor([0, 1])


def predict(params, x):
    return LOGITS + 0 * x.flatten(1).sum(1, keepdim=True)


X = torch.zeros(2, 3, 2, 2, dtype=torch.float64)


def test_cross_entropy():
    expected = LOGITS.logsumexp(1) - LOGITS.gather(1, Y[:, None]).squeeze(1)
    assert torch.allclose(fr.cross_entropy(predict)({}, X, Y), expected)


def test_label_smoothing():
    s = 0.3
    log_p = LOGITS.log_softmax(1)
    expected = -(1 - s) * log_p.gather(1, Y[:, None]).squeeze(1) - s * log_p.mean(1)
    assert torch.allclose(fr.cross_entropy(predict, label_smoothing=s)({}, X, Y), expected)


def test_margin():
    assert torch.allclose(fr.margin(predict)({}, X, Y), torch.tensor([-1.5, 0.5]).double())


def test_margin_is_positive_exactly_where_misclassified(problem):
    wrong = problem.model.predict(problem.params, problem.x).argmax(1) != problem.y
    assert torch.equal(
        fr.margin(problem.model.predict)(problem.params, problem.x, problem.y) > 0, wrong
    )


def test_targeted_margin_reaches_its_target(problem):
    loss = fr.margin(problem.model.predict)
    target = (problem.y + 1) % 5
    attack = fr.pgd(loss, fr.l2(5.0), step_size=0.2, steps=30, targeted=True)
    end = attack(problem.params, problem.x, target)
    assert (loss(problem.params, end, target) < loss(problem.params, problem.x, target)).all()
    assert (problem.model.predict(problem.params, end).argmax(1) == target).all()


OTHER = torch.tensor([[0.3, 0.1, -2.0], [5.0, 0.0, 1.0]], dtype=torch.float64)


def test_kl_divergence_is_torchs():
    p, q = (torch.distributions.Categorical(logits=z) for z in (OTHER, LOGITS))
    expected = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(fr.kl_divergence(predict, OTHER)({}, X, Y), expected)
    assert torch.allclose(kl(OTHER, LOGITS), expected)
    assert not torch.allclose(kl(LOGITS, OTHER), expected), "the order matters here"


def test_kl_divergence_from_a_certain_reference():
    """p = (1, 0, 0) to float64: −log q_0, and no NaN of 0·log 0."""
    certain = torch.tensor([[2000.0, 0.0, 0.0]]).double()
    found = kl(certain, LOGITS[:1])
    assert torch.allclose(found, -LOGITS[:1].log_softmax(1)[:, 0])


def test_kl_divergence_is_flat_at_its_reference(problem):
    reference = problem.model.predict(problem.params, problem.x)
    loss = fr.kl_divergence(problem.model.predict, reference)
    arguments = (problem.params, problem.x, problem.y)
    assert loss(*arguments).abs().max() <= 1e-12
    assert fr.input_gradient(loss)(*arguments).abs().max() <= 1e-12
    slope = torch.func.grad(fr.mean(loss))(*arguments)
    assert largest(slope.values()) <= 1e-12
    beside = loss(problem.params, problem.x + 0.01, problem.y)
    assert beside.min() > 0


def test_losses_work_on_one_example_under_vmap(problem):
    for make in (fr.cross_entropy, fr.margin):
        loss = make(problem.model.predict)
        each = vmap(lambda x, y, f=loss: f(problem.params, x[None], y[None])[0])(
            problem.x, problem.y
        )
        assert torch.allclose(each, loss(problem.params, problem.x, problem.y))


def test_distances():
    a, b = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.5)
    assert torch.allclose(fr.squared_l2(a, b), torch.full((2,), 0.25 * 768))
    assert torch.allclose(fr.l1_distance(a, b), torch.full((2,), 0.5 * 768))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_ssim_is_wangs_formula(size):
    """Identical images are at distance 0; the formula written out, window by window, agrees."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 1, size, size, generator=generator).double()
    b = (a + 0.2 * torch.rand(a.shape, generator=generator).double()).clamp(0, 1)
    assert fr.ssim(a, a).abs().max() < 1e-6
    distance = fr.ssim(a, b)
    assert distance.shape == (3,)
    assert ((distance > 0) & (distance < 2)).all()
    if size == 16:
        t = torch.arange(11).double() - 5
        g = torch.exp(-t.square() / (2 * 1.5**2))
        w = torch.outer(g / g.sum(), g / g.sum())
        values = []
        padded_a, padded_b = (F.pad(v, (5, 5, 5, 5), mode="reflect")[0, 0] for v in (a, b))
        for i in range(size):
            for j in range(size):
                p, q = padded_a[i : i + 11, j : j + 11], padded_b[i : i + 11, j : j + 11]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2
                c = (w * p * q).sum() - mp * mq
                values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4)
                              / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))  # fmt: skip
        assert abs(float(distance[0]) - (1 - float(torch.stack(values).mean()))) < 1e-6


def test_drift_takes_any_distance(problem):
    psi = fr.psi(problem.loss, fr.l2(5.0), step_size=0.2, steps=3, targeted=True)
    end = psi(problem.params, problem.x, problem.y)
    for distance in (fr.squared_l2, fr.l1_distance, fr.ssim):
        found = fr.drift(psi, distance=distance)(problem.params, problem.x, problem.y)
        assert torch.allclose(found, distance(problem.x, end))
        gradient = torch.func.grad(fr.mean(fr.drift(psi, distance=distance)))(
            problem.params, problem.x, problem.y
        )
        assert all(torch.isfinite(g).all() for g in gradient.values())


def test_logit_and_entropy(problem):
    logits = problem.model.predict(problem.params, problem.x)
    found = fr.logit(problem.model.predict)(problem.params, problem.x, problem.y)
    assert torch.equal(found, -logits[torch.arange(4), problem.y])
    found = fr.entropy(problem.model.predict)(problem.params, problem.x, problem.y)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("guidance", [0.2, 3.0])
def test_guidance_adds_the_classifiers_own_view(problem, guidance):
    arguments = (problem.params, problem.x, problem.y)
    found = fr.logit(problem.model.predict, guidance=guidance)(*arguments)
    logits = problem.module(problem.x)
    log_p = logits.log_softmax(1)[range(4), problem.y]
    assert torch.allclose(found, -logits[range(4), problem.y] - guidance * log_p, atol=1e-12)
    with pytest.raises(fr.FuncrobustError, match="guidance"):
        fr.logit(problem.model.predict, guidance=-1.0)


def test_distillation_with_the_true_label(problem):
    other = {k: 1.1 * p for k, p in problem.params.items()}
    predict = problem.model.predict
    loss = fr.distillation(predict, lambda x: predict(other, x), hard=0.3)
    t, z = predict(other, problem.x), problem.module(problem.x)
    expected = (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum(1)
    expected = expected + 0.3 * F.cross_entropy(z, problem.y, reduction="none")
    assert (loss(problem.params, problem.x, problem.y) - expected).abs().max() <= 1e-12


def test_away_from(problem):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    reference = problem.x.flip(0)
    found = fr.away_from(reference, mask)(problem.params, problem.x, problem.y)
    expected = (problem.x - reference)[..., :4, :].flatten(1).norm(dim=1)
    assert torch.allclose(found, expected)
    slope = torch.func.grad(
        lambda x: fr.away_from(problem.x)(problem.params, x, problem.y).sum()
    )(problem.x)  # fmt: skip
    assert slope.abs().max() == 0, "finite where the root is not differentiable"


def test_distillation_keeps_the_teacher(problem):
    """Zero with a slope of zero at the teacher, and elsewhere the divergence of torch."""
    model = problem.model
    loss = fr.distillation(model.predict, lambda x: model.predict(model.params, x))
    mean = fr.mean(loss)
    assert mean(model.params, problem.x, problem.y).abs() <= 1e-12
    slope = torch.func.grad(mean)(model.params, problem.x, problem.y)
    assert largest(slope.values()) <= 1e-12
    moved = {k: p * 1.1 for k, p in model.params.items()}
    a, b = (torch.distributions.Categorical(logits=model.predict(p, problem.x))
            for p in (model.params, moved))  # fmt: skip
    expected = torch.distributions.kl_divergence(a, b)
    assert torch.allclose(loss(moved, problem.x, problem.y), expected)


MANY = torch.randn(64, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(64) % 10


def scaled(params, x):
    return params["scale"] * x


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_cross_entropy_is_softplus_of_the_log_odds(temperature):
    params = {"scale": torch.ones((), dtype=torch.float64)}
    m = fr.log_odds(scaled, temperature=temperature)(params, MANY, CLASSES)
    expected = F.cross_entropy(temperature * MANY, CLASSES, reduction="none")
    assert (torch.logaddexp(m, torch.zeros_like(m)) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e3, 1e4])
def test_the_log_odds_keep_their_slope_in_float32(scale):
    """At every confidence: where cross-entropy's is rounding, or nothing, this is float64's."""

    def slope(logits):
        params = {"scale": torch.ones((), dtype=logits.dtype)}
        loss = fr.log_odds(scaled)
        return grad(lambda z: loss(params, z, CLASSES).sum())(logits)

    exact, found = slope(scale * MANY), slope((scale * MANY).float()).double()
    cosine = F.cosine_similarity(exact.flatten(), found.flatten(), dim=0)
    assert cosine > 0.9999
    assert abs(float(found.norm() / exact.norm()) - 1) < 1e-3


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e3, 1e4])
def test_cross_entropy_keeps_its_slopes_in_float32(scale):
    """First and second, example by example, with the labels that the logits are surest of.

    There p_y − 1 in float32 is off by half at a scale of 10, and 0 from 30 on; in float64 it is off
    later. So the reference is the closed form without that difference: ∂ℓ/∂z_j is p_j, and −Σ p_j
    of the others at y; H·v is p_j·(v_j − p·v), and p_y·Σ p_j·(v_y − v_j) at y. The tolerance is
    what rounding the logits to float32 does to p.
    """
    logits, sure = (scale * MANY).float(), MANY.argmax(1)
    v = (torch.arange(MANY.numel()).reshape(MANY.shape) % 3 - 1).double()
    p = logits.double().softmax(1)
    others = p * (1 - F.one_hot(sure, 10))
    own = F.one_hot(sure, 10).bool()
    v_own = v.gather(1, sure[:, None])
    first = torch.where(own, -others.sum(1, keepdim=True), p)
    second = torch.where(
        own, p * (others * (v_own - v)).sum(1, keepdim=True), p * (v - (p * v).sum(1, keepdim=True))
    )

    loss = fr.cross_entropy(scaled)
    slope = grad(lambda z: loss({"scale": torch.ones(())}, z, sure).sum())
    curvature = grad(lambda z: (v.float() * slope(z)).sum())
    for exact, found in ((first, slope(logits)), (second, curvature(logits))):
        off = (found.double() - exact).norm(dim=1)
        assert (off <= (1e-5 + 1e-6 * scale) * first.norm(dim=1) + 1e-36).all()


def test_cross_entropy_by_example_and_compiled():
    params = {"scale": torch.full((), 3.0, dtype=torch.float64)}
    loss = fr.cross_entropy(scaled)
    expected = F.cross_entropy(3 * MANY, CLASSES, reduction="none")
    each = vmap(lambda z, y: loss(params, z, y))(MANY, CLASSES)
    assert torch.allclose(each, expected, atol=1e-13)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(params, MANY, CLASSES), expected, atol=1e-13)


def test_cross_entropy_of_probabilities_is_torchs():
    target = torch.softmax(MANY.roll(1, 0), 1)
    params = {"scale": torch.ones((), dtype=torch.float64)}
    assert torch.allclose(
        fr.cross_entropy(scaled)(params, MANY, target),
        F.cross_entropy(MANY, target, reduction="none"),
    )


@pytest.mark.parametrize("name", ["entropy", "kl", "distillation"])
def test_a_class_that_cannot_be_is_as_if_it_were_not(name):
    """A logit of −∞: value, slope and curvature are those of the others, and 0 for itself."""

    def value(z, r):
        if name == "entropy":
            return fr.entropy(scaled)({"scale": 1.0}, z, None)
        if name == "kl":
            return fr.kl_divergence(scaled, r)({"scale": 1.0}, z, None)
        return fr.distillation(scaled, lambda _: r)({"scale": 1.0}, z, None)

    def slope(z, r):
        return grad(lambda z: value(z, r).square().sum())(z)

    def curvature(z, r):
        return grad(lambda z: slope(z, r).square().sum())(z)

    def without(z):
        return torch.cat([z[:, :3], torch.full_like(z[:, :1], -torch.inf), z[:, 3:]], 1)

    z, r = MANY, MANY.roll(1, 0)
    assert torch.allclose(value(without(z), without(r)), value(z, r), atol=1e-13)
    for derivative in (slope, curvature):
        found, expected = derivative(without(z), without(r)), derivative(z, r)
        assert (found[:, 3] == 0).all()
        assert torch.allclose(found[:, [*range(3), *range(4, 11)]], expected, atol=1e-13)
    if name == "kl":  # a class that the reference alone rules out
        log_q = torch.cat([z, z[:, :1]], 1).log_softmax(1)[:, :10]
        log_p = r.log_softmax(1)
        ruled = torch.cat([r, torch.full_like(r[:, :1], -torch.inf)], 1)
        found = value(torch.cat([z, z[:, :1]], 1), ruled)
        assert torch.allclose(found, (log_p.exp() * (log_p - log_q)).sum(1), atol=1e-12)


def test_one_class_that_is_not_masked_has_no_loss_and_no_slope():
    """All others at −∞: whoever trains on a batch with one such example still gets a gradient."""
    z = torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.5, 0.1]], dtype=torch.float64)
    masks = torch.tensor([[False, True, True], [False, False, True]])

    def predict(p, x):
        return (p * x).masked_fill(masks, -torch.inf)

    loss, y, one = fr.cross_entropy(predict), torch.tensor([0, 0]), torch.ones((), dtype=z.dtype)
    assert loss(one, z, y)[0] == 0
    slope = torch.func.grad(lambda z: loss(one, z, y).sum())(z)
    assert torch.equal(slope[0], torch.zeros(3).double())
    two = torch.nn.functional.cross_entropy(z[1:, :2].requires_grad_(), y[1:])
    assert loss(one, z, y)[1] == pytest.approx(float(two.detach()), abs=1e-12)
    assert slope[1, :2].abs().min() > 0.1
    assert torch.func.grad(lambda p: loss(p, z, y).sum())(one).isfinite()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(fr.FuncrobustError, match="temperature"):
        fr.log_odds(scaled, temperature=temperature)


def sure(scale):
    """Logits (200, 10) in float32 of a network as sure as a multiple of them, and others near."""
    draw = torch.Generator().manual_seed(3)
    z = scale * torch.randn(200, 10, generator=draw)
    return z, z + 0.1 * torch.randn(200, 10, generator=draw)


def textbook(name, z, near):
    """Each loss as it is written, in float64."""
    log_p = z.log_softmax(-1)
    if name == "kl":
        log_r = near.log_softmax(-1)
        return (log_r.exp() * (log_r - log_p)).sum(-1)
    if name == "entropy":
        return -(log_p.exp() * log_p).sum(-1)
    return -(torch.eye(10, dtype=z.dtype)[z.argmax(-1)] * log_p).sum(-1)


def ours(name, z, near):
    if name == "kl":
        return fr.kl_divergence(lambda _, x: x, near)({}, z, None)
    if name == "entropy":
        return fr.entropy(lambda _, x: x)({}, z, None)
    return fr.cross_entropy(lambda _, x: x)({}, z, torch.eye(10)[z.argmax(-1)])


@pytest.mark.parametrize("name", ["kl", "entropy", "soft labels"])
@pytest.mark.parametrize("scale", [1.0, 5.0, 8.0])
def test_a_sure_network_has_its_slope_in_float32(name, scale):
    """Where the largest probability is 1 − 1e-8, the textbook's slope is rounding alone."""
    z, near = sure(scale)
    slope = grad(lambda z: ours(name, z, near).sum())(z).double()
    exact = grad(lambda z: textbook(name, z, near.double()).sum())(z.double())
    wrong = (slope - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-9)
    assert wrong.max() < 1e-3
    if scale == 8.0:
        plain = grad(lambda z: textbook(name, z, near).sum())(z).double()
        assert ((plain - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-9)).max() > 0.05
