"""At the edges: half precision, tied and frozen parameters, threads, networks that misbehave."""

from __future__ import annotations

import threading

import pytest
import torch
from problems import largest_difference
from torch import nn

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import bounds_of
from funcrobust.core.derivatives.iteration import require_all_given
from funcrobust.core.evaluation.fab import targeted_fab

BALL = fr.linf(0.1)


@pytest.fixture(scope="module")
def case():
    """A linear network on features: every image can be moved over a border, and none is yet."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(4, 12, generator=draw, dtype=torch.float64)

    def predict(params, x):
        return (x - 0.5).flatten(1) @ params["w"].to(x.dtype).T

    x = torch.rand(30, 3, 2, 2, generator=draw, dtype=torch.float64)
    return predict, {"w": w}, x, predict({"w": w}, x).argmax(1)


ADVERSARIES = {
    "PGD": evaluation.Pgd(BALL, step_size=0.025, steps=10),
    "APGD": evaluation.apgd_adversary(BALL, steps=10),
    "FAB": targeted_fab(BALL, targets=3, steps=10),
}


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVERSARIES)
def test_where_there_are_no_gradients_nobody_is_said_to_withstand(case, name):
    assert evaluation.attack_all(*case, {name: ADVERSARIES[name]}).robust.float().mean() < 0.5
    with torch.inference_mode(), pytest.raises(fr.FuncrobustError, match=r"use torch\.no_grad"):
        evaluation.attack_all(*case, {name: ADVERSARIES[name]})


@pytest.mark.parametrize("name", ["PGD", "APGD"])
def test_an_entry_without_a_gradient_hides_no_other(case, name):
    predict, params, x, y = case

    def rough(params, x):  # 0·√0: the value is right, and one number's slope is NaN
        return predict(params, x) + 0 * (x - x.detach())[:, :1, 0, 0].abs().sqrt()

    plain, found = (
        evaluation.attack_all(each, params, x, y, {name: ADVERSARIES[name]}).robust.sum()
        for each in (predict, rough)
    )
    assert found <= plain + 3
    assert found < len(x) / 2


@pytest.mark.parametrize("bounds", [(0.0, float("inf")), (-float("inf"), float("inf"))])
def test_fab_needs_no_finite_bounds(case, bounds):
    predict, params, x, y = case
    params = {"w": params["w"].clone()}
    params["w"][:, 0] = 0  # a number that no logit hangs on
    y = predict(params, x).argmax(1)
    near = tuple(min(max(b, -50.0), 50.0) for b in bounds)
    left = [
        evaluation.attack_all(
            predict, params, x, y, {"fab": targeted_fab(fr.linf(0.1, bounds=b), targets=3)}
        ).robust.sum()
        for b in (near, bounds)
    ]
    assert left[0] == left[1] < len(x) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ball", [fr.linf(0.1), fr.l2(0.3)])
def test_half_precision_lies_in_the_ball_up_to_its_own_rounding(case, dtype, ball):
    predict, params, x, y = case
    params, x = {"w": params["w"].to(dtype)}, x.to(dtype)
    y = predict(params, x).argmax(1)
    found = evaluation.attack_all(
        predict, params, x, y, {"fab": targeted_fab(ball, targets=3, steps=20)}, ball=ball
    )
    assert found.robust.sum() < len(x)
    far = x + 3 * torch.finfo(dtype).eps + (0.1 if ball.radius == 0.1 else 0.3)
    assert not evaluation.adversary.inside(ball, far, x).any()


def test_a_network_that_gives_something_else_than_logits(case):
    _, params, x, y = case
    for shape in ((len(x),), (len(x), len(x), 4)):
        with pytest.raises(fr.FuncrobustError, match=r"gives logits \(B, classes\)"):
            evaluation.correct(lambda params, x, s=shape: torch.zeros(s), params, x, y)
    with pytest.raises(fr.FuncrobustError, match=r"this loss is of logits \(B, classes\)"):
        fr.cross_entropy(lambda params, x: x.flatten(1).sum(1))(params, x, y)


def test_not_a_number_is_a_vote_for_no_class(case):
    _, params, x, _ = case
    silent = lambda params, x: torch.full((len(x), 4), torch.nan)  # noqa: E731
    found = fr.certify(silent, params, x[:2], sigma=0.5, n=100)
    assert found.label.tolist() == [-1, -1]


# --- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 2e-4, 0.5])
def test_sums_of_squares_in_half_precision(size):
    center = torch.full((1, 3, 224, 224), 0.25, dtype=torch.float16)
    moved = fr.l2(0.02).project(center + size, center)
    assert moved.dtype == torch.float16
    assert float((moved - center).float().norm()) <= 0.02 + 224 * 3**0.5 * 2e-4 / 2
    gradient = torch.full((1, 3, 224, 224), size, dtype=torch.float16)
    step = fr.l2(3.0).steepest(gradient)
    assert step.dtype == torch.float16
    assert float(step.float().norm()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_of_a_smooth_ball_in_half_precision(dtype):
    gradient = torch.tensor([[1.0] + [0.01] * 999])
    ball = fr.smooth_linf(0.5)
    exact, found = (ball.steepest(gradient.to(d)) for d in (torch.float64, dtype))
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 0.02


@pytest.mark.parametrize("build", [fr.dlr, lambda p: fr.targeted_dlr(p, torch.tensor([1, 1]))])
def test_ratios_of_ties_in_half_precision(build):
    tied = lambda params, x: torch.ones(2, 5, dtype=torch.float16)  # noqa: E731
    assert build(tied)({}, torch.zeros(2, 1), torch.tensor([0, 2])).isfinite().all()


# --- what is handed in ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", [torch.tensor([4]), torch.tensor(4)])
def test_a_target_for_some_of_the_examples_is_refused(target):
    loss = fr.targeted_dlr(lambda params, x: torch.randn(3, 6), target)
    with pytest.raises(fr.FuncrobustError):
        loss({}, torch.zeros(3, 1), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    "bounds", [((0, 0, 0), (1, 1, 1)), (torch.zeros(3, 1, 1), torch.ones(3, 1, 1)), 0.5, (0, 1, 2)]
)
def test_bounds_are_two_numbers(bounds):
    with pytest.raises(fr.FuncrobustError, match="bounds are two numbers"):
        fr.linf(0.1, bounds=bounds)
    assert bounds_of(fr.linf(0.1, bounds=(0, 2))) == (0, 2)


@pytest.mark.parametrize("build", [fr.pgd_k, fr.apgd_k, fr.rs_fgsm])
def test_steps_of_another_norm_have_no_default_length(build):
    for ball in (
        fr.with_steps(BALL, fr.l2(1.0)),
        fr.masked(fr.with_steps(BALL, fr.l2(1.0)), torch.ones(1, dtype=torch.bool)),
    ):
        with pytest.raises(fr.FuncrobustError, match="give a step size"):
            build(ball)
        assert build(ball, step_size=0.4)


def test_a_sampler_steps_along_the_gradient_alone():
    loss = lambda params, x, y: x.flatten(1).sum(1)  # noqa: E731
    for ball in (fr.fourier(decay=1.0), 0.5):
        with pytest.raises(fr.FuncrobustError):
            fr.sampler(loss, ball, step_size=0.1, steps=2, key=fr.key(0, "k"))


def test_a_loss_that_only_the_whole_batch_fits():
    """What is asked of one row may fail in any way: then the whole batch is asked."""
    whole = torch.tensor([True, False, True])

    def step(params, x, y, center):
        return x + params["w"] * x[whole].sum()

    require_all_given(step, {"w": torch.ones(())}, *(torch.ones(3, 2),) * 3)


def test_curvature_where_the_slope_is_zero():
    x = torch.zeros(3, 5, dtype=torch.float64)
    curvature = fr.top_curvature(lambda params, x, y: x.square().sum(1))
    assert curvature({}, x, torch.zeros(3)) == pytest.approx([2.0, 2.0, 2.0])


# --- networks ------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_a_tied_parameter_goes_by_any_of_its_names():
    model, x = fr.functionalize(Tied()), torch.rand(4, 3)
    expected = model.predict(model.params, x)
    params = dict(model.params)
    params["b.weight"] = params.pop("a.weight")
    module = model.module(params)
    assert module.a.weight is module.b.weight
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(model.predict(params, x), expected)


def test_one_network_in_several_threads():
    model = fr.functionalize(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)))
    x = torch.rand(8, 6)
    several = [{k: (i + 1) * p for k, p in model.params.items()} for i in range(3)]
    expected, wrong = [model.predict(params, x) for params in several], []

    def ask(i):
        try:
            for _ in range(150):
                if not torch.equal(model.predict(several[i], x), expected[i]):
                    wrong.append(i)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize("network", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_a_network_that_writes_to_its_input(network):
    model = fr.functionalize(nn.Sequential(network, nn.Linear(3, 2)))
    x = torch.randn(4, 3) - 2
    with pytest.raises(fr.FuncrobustError, match=r"x\.clone\(\)"):
        model.predict(model.params, x)


def test_a_network_that_returns_a_pair():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    model = fr.functionalize(Pair(3, 2))
    with pytest.raises(fr.FuncrobustError, match="returns a tuple"):
        model.predict(model.params, torch.rand(1, 3))


def test_what_a_forward_pass_has_left_in_a_module():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen

    module = Remembers(3, 2)
    module(torch.rand(1, 3))
    model, x = fr.functionalize(module), torch.rand(4, 3)
    torch.testing.assert_close(model.predict(model.params, x), module(x))
    old = nn.utils.weight_norm(nn.Linear(3, 2))
    assert fr.functionalize(old).predict(fr.functionalize(old).params, x).shape == (4, 2)


# --- training ------------------------------------------------------------------------------------


def trained(params, optim, loss, **options):
    update = fr.make_update(fr.objective(loss), optim, **options)
    state = fr.initial_state(params, optim, averaged=bool(options))
    x, y = torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])
    for _ in range(2):
        state, _ = update(state, x, y)
    return state


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_number_that_is_learnt_stays_in_its_precision(name):
    params = {"w": torch.randn(2, 3), "scale": torch.tensor(1.0)}
    loss = fr.cross_entropy(lambda params, x: params["scale"] * (x @ params["w"].T))
    schedule = fr.schedule("cosine", lr_max=0.1, total_steps=10)
    state = trained(params, fr.optimizer(name, schedule), loss, decay=0.9)
    assert {t.dtype for t in (*state.params.values(), *state.average.values())} == {torch.float32}
    assert state.params["scale"] != 1


def test_frozen_parameters_are_said_to_be_trained():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    model, optim = fr.functionalize(network), fr.optimizer("sgd", 0.1)
    with pytest.warns(UserWarning, match=r"2 parameters .*were frozen \(0\.weight"):
        fr.initial_state(model, optim)
    part = {name: model.params[name] for name in ("1.weight", "1.bias")}
    whole = fr.cross_entropy(model.predict)
    state = trained(part, optim, lambda params, x, y: whole({**model.params, **params}, x, y))
    assert state.params.keys() == part.keys()
    assert largest_difference(state.params, part) > 0
    network.requires_grad_(False)
    assert not fr.functionalize(network).frozen(), "a network that is held as a whole is one to use"


def test_a_network_without_parameters():
    loss = lambda params, x, y: x.sum(1)  # noqa: E731
    assert trained({}, fr.optimizer("sgd", 0.1), loss).params == {}


ONE_LOGIT = fr.functionalize(nn.Linear(3, 1))


def test_one_logit_is_no_classifier_to_measure():
    x, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(fr.FuncrobustError, match=r"torch\.zeros_like"):
        evaluation.correct(ONE_LOGIT.predict, ONE_LOGIT.params, x, y)
    with pytest.raises(fr.FuncrobustError, match=r"torch\.zeros_like"):
        evaluation.attack_all(ONE_LOGIT.predict, ONE_LOGIT.params, x, y, {})


@pytest.mark.parametrize("y", [torch.zeros(4, dtype=torch.int64), {"of": torch.zeros(4)}])
def test_a_regression_has_no_accuracy(y):
    def compose(modes, batch):
        return {"square": (1.0, lambda p, x, _y: modes.training(p, x).square().sum(-1))}

    update = fr.make_update(fr.training_objective(ONE_LOGIT, compose), fr.optimizer("sgd", 0.1))
    state = fr.initial_state(ONE_LOGIT, fr.optimizer("sgd", 0.1))
    _, metrics = update(state, fr.Batch(torch.rand(4, 3), y))
    assert "accuracy" not in metrics


def test_robust_takes_targets():
    model = fr.functionalize(nn.Linear(3, 3).double())
    x = torch.rand(9, 3, dtype=torch.float64, generator=fr.generator(0, "nine"))
    y = (model.predict(model.params, x).argmax(1) + 1) % 3
    pgd = evaluation.Pgd(fr.linf(1.0), 0.25, targeted=True)
    with pytest.raises(fr.FuncrobustError, match="targeted=True to what runs it"):
        evaluation.robust(model.predict, model.params, x, y, pgd)
    told = evaluation.robust(model.predict, model.params, x, y, pgd, targeted=True)
    all_told = evaluation.attack_all(
        model.predict, model.params, x, y, {"robust": pgd}, targeted=True
    )
    assert torch.equal(told, all_told.robust)
    with pytest.raises(fr.FuncrobustError, match="give seed="):
        evaluation.attack_all(
            model.predict, model.params, x, y, {"pgd": evaluation.Pgd(fr.linf(0.1), 0.1, seed=3)}
        )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: fr.functionalize(nn.DataParallel(nn.Linear(2, 2))), "module.module"),
        (lambda: fr.functionalize(torch.jit.script(nn.Linear(2, 2))), "before torch.jit"),
        (lambda: fr.functionalize(nn.LazyLinear(2)), "call it once"),
        (lambda: ONE_LOGIT.to(torch.float64), "module.to"),
        (
            lambda: fr.make_update(
                fr.objective(fr.cross_entropy(ONE_LOGIT.predict)),
                torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1),
            ),
            "not a torch.optim.sgd.SGD",
        ),
        (
            lambda: fr.initial_state(ONE_LOGIT, torch.optim.SGD([torch.zeros(1)], 0.1)),
            "not a torch.optim.sgd.SGD",
        ),
        (
            lambda: evaluation.autoattack(fr.masked(fr.linf(0.1), torch.ones(8, 8) > 0)),
            r"mask=\(8, 8\)\): of any ball",
        ),
        (
            lambda: fr.masked(fr.masked(fr.linf(0.1), torch.ones(8) > 0), torch.ones(8) > 0),
            "mask & other",
        ),
    ],
)  # fmt: skip
def test_what_is_handed_in_by_mistake_is_met_with_the_way_out(wrong, said):
    with pytest.raises(fr.FuncrobustError, match=said) as refused:
        wrong()
    assert "\n" not in str(refused.value)
