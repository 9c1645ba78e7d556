"""The lift: compositions of public names against their formulas, put together by hand."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import by_hand
import pytest
import torch
import torch.nn.functional as F
from by_hand import ALPHA, EPS
from compositions import dense, drift_and_anchor, psi_of
from problems import directional_difference, inner, largest_difference, random_direction
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vjp

import funcrobust as fr
from funcrobust.core.attacks import fixed

BALL = fr.linf(EPS)
ATTACK = fr.rs_fgsm(BALL, step_size=ALPHA)


@pytest.fixture
def batch(problem):
    return fr.Batch(problem.x, problem.y, BALL.sample(problem.x, fr.generator(0, "start")))


def fit(modes, batch, seen="running", attack=ATTACK):
    """The loss on x̂, which was searched for in another mode."""
    perturb = attack.perturb(fr.cross_entropy(getattr(modes, seen)))
    return fr.adversarial(fr.cross_entropy(modes.training), perturb, start=batch.start)


def with_cure(lam, h, n=4, statistics="batch", seen="running"):
    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        part = batch.first(n)
        cure = fr.cure(fr.cross_entropy(getattr(modes, statistics)), h * batch.growth)
        return {
            "loss": (1.0, fit(modes, batch, seen)),
            "curvature": (lam, fr.at(cure, part.x, part.y)),
        }

    return compose


def evaluated(problem, compose, batch, **options):
    """Value, buffers, metrics and gradient."""
    objective = fr.training_objective(problem.model, compose, **options)
    total, (buffers, metrics) = objective(problem.params, problem.model.buffers, batch)
    slope, (again, _) = grad(objective, has_aux=True)(problem.params, problem.model.buffers, batch)
    assert largest_difference(buffers, again) == 0
    return total, buffers, metrics, slope


def same(found, expected):
    """An evaluation, and what was worked out by hand."""
    total, buffers, metrics, slope = found
    assert abs(total - expected.total) <= 1e-10
    for name, value in expected.metrics.items():
        assert abs(metrics[name] - value) <= 1e-10
    assert largest_difference(slope, expected.gradient) <= 1e-10
    assert largest_difference(buffers, expected.buffers) <= 1e-12


@pytest.mark.parametrize("n", [4, 2])
@pytest.mark.parametrize("statistics", ["held", "running", "batch"])
@pytest.mark.parametrize("seen", ["running", "training"])
def test_fast_training_with_cure_is_the_formula(problem, batch, n, statistics, seen):
    found = evaluated(problem, with_cure(0.7, 1.5, n, statistics, seen), batch)
    same(found, by_hand.cure(
        problem, batch.start, lam=0.7, h=1.5, n=n, statistics=statistics, seen=seen
    ))  # fmt: skip
    assert set(found[2]) == {"loss", "curvature", "accuracy"}


def test_an_attack_given_as_it_is_ascends_the_training_loss(problem, batch):
    """In one line: by the batch's statistics, which its own evaluations do not move."""

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, fr.adversarial(loss, ATTACK, start=batch.start))}

    found, expected = (
        evaluated(problem, c, batch)
        for c in (compose, lambda m, b: {"loss": (1.0, fit(m, b, "training"))})
    )
    assert found[0] == expected[0]
    assert largest_difference(found[3], expected[3]) == 0
    assert int(found[1]["net.1.num_batches_tracked"]) == 1


def test_the_attack_is_constant(problem, batch):
    """No derivative flows through x̂: the gradient is that of the loss at a fixed x̂."""
    x_hat = by_hand.rs_fgsm(
        problem, batch.start, lambda m, x: F.cross_entropy(m(x), problem.y, reduction="none")
    )

    def held(modes, batch):
        return {"loss": (1.0, fit(modes, batch, attack=fr.Attack(None, lambda _: fixed(x_hat))))}

    found, expected = (
        evaluated(problem, c, batch)[3] for c in (lambda m, b: {"loss": (1.0, fit(m, b))}, held)
    )
    assert largest_difference(found, expected) <= 1e-12


def test_what_the_attack_sees_is_chosen(problem, batch):
    values = [
        float(evaluated(problem, lambda m, b, s=s: {"loss": (1.0, fit(m, b, s))}, batch)[0])
        for s in ("running", "training")
    ]
    assert abs(values[0] - values[1]) > 1e-6


def with_trades(smoothing=0.0, seen="running"):
    def compose(modes, batch):
        natural = getattr(modes, seen)(modes.params, batch.x).detach()
        search = ATTACK.perturb(fr.kl_divergence(getattr(modes, seen), natural))
        loss = fr.trades(
            modes.training, search, beta=6.0, start=batch.start,
            natural=partial(fr.cross_entropy, label_smoothing=smoothing),
        )  # fmt: skip
        return {"loss": (1.0, loss)}

    return compose


@pytest.mark.parametrize("seen", ["running", "training"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_trades_is_the_published_code(problem, batch, smoothing, seen):
    """In training mode: two evaluations, x's and then x̂'s, in their buffers too."""
    found = evaluated(problem, with_trades(smoothing, seen), batch)
    expected = by_hand.trades(problem, batch.start, beta=6.0, smoothing=smoothing, seen=seen)
    same(found, expected)
    assert found[2]["accuracy"] == expected.metrics["accuracy"], "on what came last, x̂"
    assert int(found[1]["net.1.num_batches_tracked"]) == 2


def test_held_statistics_are_one_batchs(problem, batch):
    """x̂'s, which TRADES evaluates last: not what the two passes made of the running ones."""
    seen = []

    def compose(modes, batch):
        seen.append(modes)
        probe = fr.cross_entropy(modes.held)
        return dict(with_trades()(modes, batch)) | {"probe": (1.0, probe)}

    evaluated(problem, compose, batch)
    x_hat = by_hand.trades(problem, batch.start, beta=6.0).x_hat
    expected = by_hand.in_mode(problem, "held", x_hat)(problem.x)
    assert (seen[0].held(problem.params, problem.x) - expected).abs().max() <= 1e-12


def test_held_statistics_need_an_evaluation_before(problem, batch):
    def compose(modes, _):
        return {"probe": (1.0, fr.cross_entropy(modes.held))}

    with pytest.raises(fr.FuncrobustError, match=r"evaluates modes\.training first"):
        evaluated(problem, compose, batch)


def test_each_mode_is_the_modules(problem, batch):
    seen = []

    def compose(modes, _):
        seen.append(modes)
        return {"loss": (1.0, fr.cross_entropy(modes.training))}

    evaluated(problem, compose, batch)
    modes = seen[0]
    for mode, by_its_batch in (("training", True), ("batch", True), ("running", False)):
        module = problem.model.module().train(by_its_batch)
        found = getattr(modes, mode)(problem.params, problem.x)
        assert (found - module(problem.x)).abs().max() <= 1e-12
    assert largest_difference(modes.params, problem.params) == 0
    leaves = {k: p.clone().requires_grad_() for k, p in problem.params.items()}
    objective = fr.training_objective(problem.model, compose)
    objective(leaves, problem.model.buffers, batch)
    assert not any(p.requires_grad for p in seen[-1].params.values())


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_modes_that_move_nothing(problem, batch, mode):
    _, buffers, metrics, _ = evaluated(
        problem, lambda m, _: {"loss": (1.0, fr.cross_entropy(getattr(m, mode)))}, batch
    )
    assert largest_difference(buffers, problem.model.buffers) == 0
    assert set(metrics) == {"loss"}, "no accuracy: training mode was not evaluated"


def walk(loss, derivative):
    return fr.psi(loss, fr.l2(1.0), step_size=0.1, steps=2, targeted=True, derivative=derivative)


def own_slope(loss):
    """A term of a user's: torch.func's gradient of what closes over the parameters."""
    return lambda params, x, y: grad(lambda x: loss(params, x, y).sum())(x).square().sum((1, 2, 3))


# What an attack evaluates, or a derivative, in training mode.
UNMOVING = {
    "cure": lambda loss: fr.cure(loss, 0.5),
    "cure, batched": lambda loss: fr.cure(loss, 0.5, derivative="batched"),
    "cure, forward": lambda loss: fr.cure(loss, 0.5, derivative="forward"),
    "cure, random": lambda loss: fr.cure(loss, 0.5, along=torch.ones(4, 3, 8, 8).double()),
    "input gradient": fr.input_gradient_norm,
    "alignment": lambda loss: fr.gradient_alignment(
        loss, toward=torch.full((4, 3, 8, 8), 0.4).double()
    ),
    "drift": lambda loss: fr.drift(walk(loss, fr.adjoint())),
    "drift, unrolled": lambda loss: fr.drift(walk(loss, fr.unrolled())),
    "drift, truncated": lambda loss: fr.drift(walk(loss, fr.one_step())),
    "curvature": lambda loss: fr.top_curvature(loss, iterations=2),
    "own": own_slope,
}
ATTACKS = {
    "pgd": fr.pgd_k(BALL, steps=3),
    "zerograd": fr.zerograd(BALL),
    "best": fr.Attack(
        BALL.sample, lambda loss: fr.pgd(loss, BALL, step_size=ALPHA, steps=2, use_best=True)
    ),
}


def plain(objective, *arguments):
    return objective(*arguments)[1][0]


def by_grad(objective, params, *rest):
    return grad(objective, has_aux=True)(params, *rest)[1][0]


def by_vjp(objective, params, *rest):
    return vjp(lambda p: objective(p, *rest), params, has_aux=True)[2][0]


def by_jvp(objective, params, *rest):
    direction = random_direction(params)
    return jvp(lambda p: objective(p, *rest), (params,), (direction,), has_aux=True)[2][0]


def by_autograd(objective, params, *rest):
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    total, (buffers, _) = objective(leaves, *rest)
    total.backward()
    return buffers


TRANSFORMS = [plain, by_grad, by_vjp, by_jvp, by_autograd]


def once(problem, x):
    """The buffers that one evaluation leaves, by the module itself."""
    module = problem.model.module().train()
    module(x)
    return dict(module.named_buffers())


@pytest.mark.parametrize("evaluate", TRANSFORMS)
@pytest.mark.parametrize("name", UNMOVING)
def test_a_derivative_moves_no_buffers(problem, batch, name, evaluate):
    """Training mode evaluated once, and in a derivative of any kind: the buffers move once."""

    def compose(modes, _):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, loss), "term": (0.5, UNMOVING[name](loss))}

    objective = fr.training_objective(problem.model, compose)
    buffers = evaluate(objective, problem.params, problem.model.buffers, batch)
    assert largest_difference(buffers, once(problem, problem.x)) <= 1e-12
    assert buffers.keys() == problem.model.buffers.keys()
    for buffer in buffers.values():
        assert type(buffer) is torch.Tensor
        assert not buffer.requires_grad


@pytest.mark.parametrize("evaluate", TRANSFORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_moves_no_buffers(problem, batch, name, evaluate):
    seen = []

    def compose(modes, batch):
        def kept(params, x, y):
            seen.append(x)
            return fr.cross_entropy(modes.training)(params, x, y)

        perturb = ATTACKS[name].perturb(fr.cross_entropy(modes.training))
        return {"loss": (1.0, fr.adversarial(kept, perturb, start=batch.start))}

    objective = fr.training_objective(problem.model, compose)
    buffers = evaluate(objective, problem.params, problem.model.buffers, batch)
    (x_hat,) = seen
    assert not torch.equal(x_hat, problem.x)
    assert largest_difference(buffers, once(problem, x_hat.detach())) <= 1e-12


def everything(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
    """All kinds of terms on training mode, which each could move it once too often."""
    loss = fr.cross_entropy(modes.training)
    return {
        "loss": (1.0, fr.adversarial(loss, fr.pgd_k(BALL, steps=2), start=batch.start)),
        "cure": (0.5, fr.cure(loss, 0.5)),
        "forward": (0.5, fr.cure(fr.cross_entropy(modes.batch), 0.5, derivative="forward")),
        "drift": (0.1, fr.drift(walk(loss, fr.adjoint()))),
        "held": (0.3, fr.cross_entropy(modes.held)),
        "clean": (0.2, loss),
    }


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_it_is_the_eager_one(problem, batch, backend):
    """Into one graph: gradient, buffers (moved by x̂ and by the clean images) and metrics."""
    objective = fr.training_objective(problem.model, everything)

    def slope(params, buffers, batch):
        return grad(objective, has_aux=True)(params, buffers, batch)

    torch.compiler.reset()
    arguments = (problem.params, problem.model.buffers, batch)
    expected, (buffers, metrics) = slope(*arguments)
    compiled = torch.compile(slope, fullgraph=True, backend=backend)
    found, (found_buffers, found_metrics) = compiled(*arguments)
    assert int(buffers["net.1.num_batches_tracked"]) == 2
    assert largest_difference(found_buffers, buffers) <= 1e-10
    assert largest_difference(found, expected) <= 1e-10
    assert largest_difference(found_metrics, metrics) <= 1e-10
    names = ["loss", "cure", "forward", "drift", "held", "clean", "accuracy"]
    assert list(found_metrics) == list(metrics) == names


def test_compiled_a_derivative_leaves_the_accuracy_alone():
    """CURE's forward form closes over the parameters, where a compiler counts no transforms."""
    model, x = dense(7, 5, 3), torch.linspace(-1, 1, 42).double().reshape(6, 7)
    batch = fr.Batch(x, torch.tensor([0, 1, 2, 2, 1, 0]))

    def compose(modes, _):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, loss), "cure": (1.0, fr.cure(loss, 0.5, derivative="forward"))}

    objective = fr.training_objective(model, compose)
    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    expected, found = (f(model.params, {}, batch)[1][1] for f in (objective, compiled))
    assert list(found) == list(expected) == ["loss", "cure", "accuracy"]
    assert largest_difference(found, expected) <= 1e-12


def test_bf16_is_close_to_fp32(problem):
    model = fr.functionalize(problem.model.module().float())
    x = problem.x.float()
    batch = fr.Batch(x, problem.y, BALL.sample(x, fr.generator(0, "start")))
    exact, half = (
        fr.training_objective(model, with_cure(0.5, 1.0), dtype=dtype)(
            model.params, model.buffers, batch
        )[0]
        for dtype in (None, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert 0 < abs(float(exact - half)) < 0.02


def test_growth_scales_h(problem, batch):
    grown = batch._replace(growth=torch.tensor(0.2, dtype=torch.float64))
    found = evaluated(problem, with_cure(1.0, 1.5), grown)
    small = evaluated(problem, with_cure(1.0, 0.3), batch)
    assert abs(found[2]["curvature"] - small[2]["curvature"]) <= 1e-12
    assert largest_difference(found[3], small[3]) <= 1e-12


def test_terms_of_weight_0_are_not_evaluated(problem, batch):
    def never(params, x, y):
        raise AssertionError

    def compose(modes, batch):
        return {"loss": (1.0, fit(modes, batch)), "never": (0.0, never)}

    total, _, metrics, _ = evaluated(problem, compose, batch)
    assert set(metrics) == {"loss", "accuracy"}
    assert total == metrics["loss"]


def test_a_weight_may_be_a_tensor_and_compiles():
    """Not looked at: one graph whatever it is, and its term is that of the number."""
    model, x = dense(7, 5, 3), torch.linspace(-1, 1, 42).double().reshape(6, 7)
    batch = fr.Batch(x, torch.tensor([0, 1, 2, 2, 1, 0]))

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, loss), "cure": (batch.growth * 0.5, fr.cure(loss, 0.5))}

    def slope(params, batch):
        objective = fr.training_objective(model, compose)
        return grad(objective, has_aux=True)(params, {}, batch)

    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(slope, fullgraph=True, backend=counter)
    for growth in (0.5, 0.0, 2.0):  # 2: a weight of 1
        expected, (_, metrics) = slope(model.params, batch._replace(growth=growth))
        grown = batch._replace(growth=torch.tensor(growth, dtype=torch.float64))
        for evaluate in (slope, compiled):
            found, (_, said) = evaluate(model.params, grown)
            assert largest_difference(found, expected) <= 1e-12
            assert list(said) == ["loss", "cure", "accuracy"]
            assert abs(said["loss"] - metrics["loss"]) <= 1e-12
    assert counter.frame_count == 1


def test_an_objective_is_the_weighted_sum_of_its_metrics(problem, batch):
    """Each a mean over as many examples as its term gives."""
    x = problem.x

    def compose(modes, batch):
        return {
            "loss": (1.0, fit(modes, batch)),
            "clean": (0.25, fr.cross_entropy(modes.training)),
            "probe": (2.0, fr.at(lambda p, x, y: x.flatten(1).mean(1), x[:2], None)),
        }

    total, _, metrics, _ = evaluated(problem, compose, batch)
    assert list(metrics) == ["loss", "clean", "probe", "accuracy"]
    clean = F.cross_entropy(problem.model.module().train()(x), problem.y)
    assert abs(metrics["clean"] - clean) <= 1e-12
    assert abs(metrics["probe"] - x[:2].mean()) <= 1e-12
    expected = metrics["loss"] + 0.25 * metrics["clean"] + 2.0 * metrics["probe"]
    assert abs(total - expected) <= 1e-12
    assert not any(m.requires_grad or m.ndim for m in metrics.values())


def test_accuracy_is_of_what_training_mode_saw_last(problem, batch):
    """x̂ under an attack; the images after them, if a later term looks at these."""
    module = problem.model.module().train()
    label = module(problem.x).argmax(1)
    onto = batch._replace(y=label)

    def compose(modes, _):
        return {"loss": (1.0, fr.cross_entropy(modes.training))}

    assert float(evaluated(problem, compose, onto)[2]["accuracy"]) == 1.0
    far = problem.x.flip(0)

    def last(modes, _):
        elsewhere = fr.at(fr.cross_entropy(modes.training), far, label)
        return dict(compose(modes, None)) | {"far": (1.0, elsewhere)}

    expected = (module(far).argmax(1) == label).double().mean()
    assert float(evaluated(problem, last, onto)[2]["accuracy"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", ["soft labels", "regression"])
def test_labels_that_are_no_classes_have_no_accuracy(problem, kind):
    y = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).double()
    values = {
        "soft labels": lambda z: -(y * z.log_softmax(1)).sum(1),
        "regression": lambda z: (z - y).square().sum(1),
    }[kind]

    def compose(modes, batch):
        return {"loss": (1.0, lambda params, x, _: values(modes.training(params, x)))}

    total, buffers, metrics, slope = evaluated(problem, compose, fr.Batch(problem.x, y))
    module = problem.model.module().train()
    expected = values(module(problem.x)).mean()
    expected.backward()
    assert set(metrics) == {"loss"}
    assert abs(total - expected) <= 1e-12
    assert largest_difference(slope, {k: p.grad for k, p in module.named_parameters()}) <= 1e-12
    assert int(buffers["net.1.num_batches_tracked"]) == 1


def test_without_an_attack_it_trains_on_the_images(problem, batch):
    def compose(modes, _):
        return {"loss": (1.0, fr.cross_entropy(modes.training, label_smoothing=0.1))}

    _, buffers, _, slope = evaluated(problem, compose, batch)
    module = problem.model.module().train()
    F.cross_entropy(module(problem.x), problem.y, label_smoothing=0.1).backward()
    assert largest_difference(slope, {k: p.grad for k, p in module.named_parameters()}) <= 1e-12
    assert largest_difference(buffers, dict(module.named_buffers())) <= 1e-12


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda loss: {"mine": (-1.0, loss)}, "weight of mine"),
        (lambda loss: {"mine": (float("nan"), loss)}, "weight of mine"),
        (lambda loss: {"mine": (float("inf"), loss)}, "weight of mine"),
        (lambda loss: {"mine": (torch.ones(4), loss)}, "weight of mine is one number"),
        (lambda loss: {"mine": (torch.ones(1), loss)}, "weight of mine is one number, of 0 dim"),
        (lambda loss: {"mine": (0.0, loss)}, "positive weight"),
        (lambda loss: {}, "positive weight"),
        (lambda loss: {"mine": (1.0, fr.mean(loss))}, "per example"),
        (lambda loss: {"mine": (1.0, lambda *a: loss(*a).mean())}, "per example"),
        (lambda loss: {"mine": (1.0, lambda *a: loss(*a)[:, None])}, "per example"),
    ],
)
def test_bad_terms(problem, batch, terms, message):
    def compose(modes, _):
        return terms(fr.cross_entropy(modes.training))

    with pytest.raises(fr.FuncrobustError, match=message):
        evaluated(problem, compose, batch)


def test_a_batch_of_your_own(problem):
    """Anything with x and y; other parts under other names."""

    class Weighted(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor
        share: torch.Tensor

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, lambda *a: batch.share * loss(*a))}

    share = torch.tensor([0.0, 1.0, 2.0, 0.5]).double()
    total, _, _, _ = evaluated(problem, compose, Weighted(problem.x, problem.y, share))
    values = F.cross_entropy(problem.model.module().train()(problem.x), problem.y, reduction="none")
    assert abs(total - (share * values).mean()) <= 1e-12


def test_the_first_of_a_batch(problem, batch):
    """Every part is cut to the same examples but growth, and what is not there stays away."""
    whole = batch._replace(mix=torch.arange(4), growth=torch.tensor(0.5))
    part = whole.first(3)
    assert torch.equal(part.x, whole.x[:3])
    assert torch.equal(part.y, whole.y[:3])
    assert torch.equal(part.start, whole.start[:3])
    assert part.mix.tolist() == [0, 1, 2]
    assert part.points is part.noise is None
    assert part.growth == 0.5


def test_psi_training_is_drift_plus_anchor(problem, batch):
    total, buffers, metrics, slope = evaluated(problem, drift_and_anchor(3.0), batch)
    psi = psi_of(problem.model.predict)
    drift = fr.drift(psi)(problem.params, problem.x, problem.y).mean()
    anchor = F.cross_entropy(problem.module(problem.x), problem.y)
    assert abs(total - drift - 3 * anchor) <= 1e-12
    assert set(metrics) == {"drift", "anchor"}
    assert largest_difference(buffers, problem.model.buffers) == 0, "the statistics stay put"
    direction = random_direction(problem.params)
    objective = fr.training_objective(problem.model, drift_and_anchor(3.0))
    numeric = directional_difference(
        lambda p: objective(p, problem.model.buffers, batch)[0], problem.params, direction
    )
    assert abs(numeric) > 1e-3
    assert abs(inner(slope, direction) - numeric) <= 1e-6 * abs(numeric)


def test_psi_training_lowers_the_drift(problem, batch):
    optim = fr.optimizer("SGD", 0.02, clip_norm=1.0)
    objective = fr.training_objective(problem.model, drift_and_anchor(0.0))
    update = fr.make_update(objective, optim)
    state = fr.initial_state(problem.model, optim)
    drifts = []
    for _ in range(30):
        state, metrics = update(state, batch)
        drifts.append(float(metrics["drift"]))
    assert set(metrics) == {"drift", "gradient_norm"}
    assert drifts[-1] < 0.8 * drifts[0]


def test_an_objective_of_a_loss_needs_no_modes():
    """Without batch norm both lifts are the same."""
    model = dense(7, 5, 3)
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    loss = fr.cross_entropy(model.predict)
    single = grad(fr.objective(loss), has_aux=True)(model.params, {}, x, y)
    composed = fr.training_objective(
        model, lambda modes, _: {"loss": (1.0, fr.cross_entropy(modes.training))}
    )
    several = grad(composed, has_aux=True)(model.params, {}, fr.Batch(x, y))
    assert largest_difference(single[0], several[0]) <= 1e-12
    assert single[1][0] == several[1][0] == {}
    assert abs(single[1][1]["loss"] - several[1][1]["loss"]) <= 1e-12
    values, module = loss(model.params, x, y), model.module()
    assert abs(single[1][1]["loss"] - values.mean()) <= 1e-12
    expected = torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters()))
    names = [n for n, _ in module.named_parameters()]
    assert largest_difference(single[0], dict(zip(names, expected, strict=True))) <= 1e-12


def test_a_weight_perturbation_moves_the_statistics_once(problem, batch):
    """AWP (Wu et al. 2020): the loss at other parameters, made of those that are trained."""

    def compose(modes, _):
        loss = fr.adversarial(fr.cross_entropy(modes.training), fr.pgd_k(BALL, steps=2),
                              start=problem.x)  # fmt: skip

        def perturbed(params, x, y):
            slope = grad(fr.mean(loss))(params, x, y)
            return loss({k: p + 0.01 * slope[k].detach() for k, p in params.items()}, x, y)

        return {"loss": (1.0, perturbed)}

    objective = fr.training_objective(problem.model, compose)
    _, (buffers, metrics) = grad(objective, has_aux=True)(
        problem.params, problem.model.buffers, batch
    )
    before = problem.model.buffers
    counts = [int(buffers[k] - before[k]) for k in before if k.endswith("num_batches_tracked")]
    assert counts == [1] * len(counts) != []
    assert "accuracy" in metrics
