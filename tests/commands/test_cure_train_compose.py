"""From options to the algebra: the composed objective is its formula, and every method trains."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import by_hand
import pytest
import torch
import torch.nn.functional as F
from by_hand import ALPHA, EPS
from problems import largest_difference, parsed
from torch.func import grad

import funcrobust as fr
from funcrobust import checkpoints, data, models
from funcrobust.commands.cure_train import recipe
from funcrobust.commands.cure_train.assemble import assemble, calibration, input_scale
from funcrobust.commands.cure_train.compose import Composition, Growth, points_of, training_attack
from funcrobust.commands.cure_train.options import CureTrain, attack_names, regularisers
from funcrobust.commands.cure_train.presets import PRESETS
from funcrobust.commands.cure_train.recipe import unsaid
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.config import as_command
from funcrobust.running.option import options_of

# --- the objective, against plain autograd ------------------------------------------------------

BALL = fr.linf(EPS)
FAST = {"attack": "rs-fgsm", "epsilon": EPS, "alpha": ALPHA, "cure_fraction": 1.0, "lam": 0.7,
        "h": 1.5, "cure_every": 1}  # fmt: skip
SEEN = {"running": "running", "batch": "training"}
"""What the options call a mode, and what `fr.Modes` does."""


def composition(more=None, **given):
    options = CureTrain.filled(given, preset=FAST)
    return Composition(options, BALL, training_attack(options, BALL), **(more or {}))


@pytest.fixture
def batch(problem):
    """With all that a term can ask for."""
    draw, far = fr.generator(0, "points"), fr.linf(0.3)
    return fr.Batch(
        problem.x, problem.y, BALL.sample(problem.x, fr.generator(0, "start")),
        points=torch.stack([far.sample(problem.x, draw) for _ in range(2)], 1),
        mix=torch.tensor([0.4, 0.7, 0.1, 0.9]).double(),
    )  # fmt: skip


def evaluated(problem, compose, batch):
    """Value, buffers, metrics and gradient."""
    objective = fr.training_objective(problem.model, compose)
    arguments = (problem.params, problem.model.buffers, batch)
    slope, (buffers, metrics) = grad(objective, has_aux=True)(*arguments)
    return objective(*arguments)[0], buffers, metrics, slope


def same(found, expected):
    total, buffers, metrics, slope = found
    assert abs(total - expected.total) <= 1e-10
    for name, value in expected.metrics.items():
        assert abs(metrics[name] - value) <= 1e-10
    assert largest_difference(slope, expected.gradient) <= 1e-10
    assert largest_difference(buffers, expected.buffers) <= 1e-12


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("statistics", ["held", "running", "batch"])
@pytest.mark.parametrize("seen", SEEN)
def test_fast_training_with_cure_is_the_formula(problem, batch, fraction, statistics, seen):
    compose = composition(
        cure_fraction=fraction, cure_statistics=statistics, attack_statistics=seen
    )
    found = evaluated(problem, compose, batch)
    same(found, by_hand.cure(
        problem, batch.start, lam=0.7, h=1.5, n=round(4 * fraction), statistics=statistics,
        seen=SEEN[seen],
    ))  # fmt: skip
    assert set(found[2]) == {"loss", "curvature", "accuracy"}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("seen", SEEN)
def test_trades_is_the_published_code(problem, batch, smoothing, seen):
    compose = composition(
        trades=6.0, delta="none", label_smoothing=smoothing, attack_statistics=seen
    )
    found = evaluated(problem, compose, batch)
    same(found, by_hand.trades(
        problem, batch.start, beta=6.0, smoothing=smoothing, seen=SEEN[seen]
    ))  # fmt: skip
    assert int(found[1]["net.1.num_batches_tracked"]) == 2


def test_units_weight_and_growth_scale_h_and_lambda(problem, batch):
    """Inputs divided by σ: h·σ and λ·σ; every k-th update is k times as heavy."""
    grown = batch._replace(growth=torch.tensor(0.5).double())
    found = evaluated(problem, composition({"scale": 0.25}, cure_every=3), grown)
    expected = by_hand.cure(
        problem, batch.start, lam=0.7 * 0.25 * 3, h=1.5 * 0.25 * 0.5, n=4, statistics="batch",
        seen="training",
    )  # fmt: skip
    same(found, expected)


def test_where_no_regulariser_is_due_only_the_fit_is_left(problem, batch):
    every = composition(kappa=1.0, regularisers={"elle": 1.0})
    between = batch._replace(regularised=False)
    found = evaluated(problem, every, between)
    expected = evaluated(problem, composition(delta="none"), batch)
    assert set(found[2]) == {"loss", "accuracy"}
    assert largest_difference(found[3], expected[3]) <= 1e-12


def the_loss(model):
    return fr.cross_entropy(model.by_batch(model.buffers))


def x_hat_of(problem, batch):
    return by_hand.rs_fgsm(
        problem, batch.start, lambda m, x: F.cross_entropy(m(x), problem.y, reduction="none"),
        seen="training",
    )  # fmt: skip


TERMS = {
    "random": (
        {"delta": "random"}, "curvature", 0.7,
        lambda loss, b, _: fr.cure(loss, 1.5, along=b.noise[:2]),
    ),
    "fgsm": (
        {"delta": "fgsm"}, "curvature", 0.7,
        lambda loss, _, x_hat: fr.gradient_difference(loss, toward=x_hat[:2]),
    ),
    "linf": (
        {"delta": "linf"}, "curvature", 0.7,
        lambda loss, b, x_hat: fr.gradient_difference(loss, toward=b.x[:2] + 2 * (x_hat - b.x)[:2]),
    ),
    "kappa": ({"kappa": 2.0}, "clean_loss", 2.0, lambda loss, *_: loss),
    "helper": (
        {"hat": 0.5, "helper": "any"}, "helper", 0.5,
        lambda loss, _, x_hat: fr.helper_examples(loss, toward=x_hat[:2], labels=called_2),
    ),
    "elle": (
        {"regularisers": {"elle": 3.0}}, "elle", 3.0,
        lambda loss, b, _: fr.elle(loss, ends=(b.points[:2, 0], b.points[:2, 1]), mix=b.mix[:2]),
    ),
    "gradient-alignment": (
        {"regularisers": {"gradient-alignment": 3.0}}, "gradient-alignment", 3.0,
        lambda loss, b, _: fr.gradient_alignment(loss, toward=b.points[:2, 0]),
    ),
    "input-gradient-norm": (
        {"regularisers": {"input-gradient-norm": 3.0}}, "input-gradient-norm", 3.0,
        lambda loss, *_: fr.input_gradient_norm(loss),
    ),
    "local-linearity": (
        {"regularisers": {"local-linearity": 3.0}}, "local-linearity", 3.0,
        lambda loss, b, _: fr.local_linearity(
            loss, fr.pgd_k(BALL, step_size=EPS / 2, steps=2), start=b.points[:2, 0]
        ),
    ),
}  # fmt: skip


def called_2(x):
    return x.new_full((len(x),), 2, dtype=torch.int64)


def test_every_regulariser_is_among_them():
    assert set(regularisers()) <= set(TERMS)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_the_public_function_on_a_part_of_the_batch(problem, batch, name):
    """On the first half, with what was drawn for it, beside the loss on all of x̂."""
    given, metric, weight, build = TERMS[name]
    given = {"cure_fraction": 0.5, "delta": "none"} | given
    if given["delta"] == "random":
        noise = 2 * torch.rand(problem.x.shape, generator=fr.generator(0, "noise")).double() - 1
        batch = batch._replace(noise=noise)
    compose = composition({"helper_labels": called_2}, **given)
    _, _, metrics, slope = evaluated(problem, compose, batch)
    assert set(metrics) == {"loss", metric, "accuracy"}
    term = fr.mean(build(the_loss(problem.model), batch, x_hat_of(problem, batch)))
    arguments = (problem.params, problem.x[:2], problem.y[:2])
    assert term(*arguments) > 1e-6, "else this compares nothing"
    assert abs(metrics[metric] - term(*arguments)) <= 1e-10
    without = evaluated(problem, composition(delta="none"), batch)[3]
    own = {k: (slope[k] - without[k]) / weight for k in slope}
    assert largest_difference(own, grad(term)(*arguments)) <= 1e-10


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_restoration_is_psi_trains_own_term(problem, batch, statistics):
    """One step along ∇z_y of the images that are not cropped, in the mode of the regularisers."""
    images = problem.x.flip(-1)
    batch = batch._replace(restored=(images, images + 0.1 * torch.cos(100 * images)))
    given = {"delta": "none", "cure_fraction": 0.5, "cure_statistics": statistics}
    _, _, metrics, slope = evaluated(problem, composition(restore=3.0, **given), batch)
    assert set(metrics) == {"loss", "restoration", "accuracy"}
    module = problem.model.module().train(statistics == "batch")
    s = batch.restored[1][:2].clone().requires_grad_()
    step = math.prod(problem.x.shape[1:]) / 300
    chosen = module(s)[range(2), problem.y[:2]].sum()
    end = s + step * torch.autograd.grad(chosen, s, create_graph=True)[0]
    rho = (s - images[:2]).square().mean((1, 2, 3)).sqrt().detach()
    term = ((images[:2] - end).square().mean((1, 2, 3)) / rho).mean()
    assert abs(metrics["restoration"] - term) <= 1e-10
    term.backward()
    without = evaluated(problem, composition(delta="none"), batch)[3]
    for name, p in module.named_parameters():
        own = (slope[name] - without[name]) / 3.0
        assert (own - (0 if p.grad is None else p.grad)).abs().max() <= 1e-9


@pytest.mark.parametrize("name", ["rs-fgsm", "n-fgsm", "zerograd", "pgd", "pgd-k", "fgsm"])
def test_an_attack_is_the_public_function_on_its_options(problem, name):
    given = {
        "rs-fgsm": {"alpha": 0.01}, "fgsm": {}, "n-fgsm": {"noise": 1.5},
        "zerograd": {"quantile": 0.5}, "pgd": {"attack_steps": 3, "alpha": 0.01}, "pgd-k": {},
    }[name]  # fmt: skip
    build = {
        "rs-fgsm": lambda b: fr.rs_fgsm(b, step_size=0.01), "fgsm": fr.rs_fgsm,
        "n-fgsm": lambda b: fr.n_fgsm(b, noise=1.5),
        "zerograd": lambda b: fr.zerograd(b, quantile=0.5),
        "pgd": lambda b: fr.pgd_k(b, step_size=0.01, steps=3), "pgd-k": fr.pgd_k,
    }[name]  # fmt: skip
    chosen = training_attack(CureTrain.filled({"attack": name, "preset": "cpu"} | given), BALL)
    ends = []
    for attack in (chosen, build(BALL)):
        start = attack.start(problem.x, fr.generator(0, "start"))
        perturb = attack.perturb(problem.loss)
        ends.append(perturb(problem.params, start, problem.y, center=problem.x))
    assert (ends[0] - ends[1]).abs().max() <= 1e-14
    assert (ends[0] - problem.x).abs().max() > 1e-3


# --- trainings ----------------------------------------------------------------------------------


def options(**given):
    given = {"dataset": "digits", "batch_size": 16, "epochs": 2} | given
    return CureTrain.filled(given)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").subset(48, 16, 0)


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """A checkpoint that can stand for HAT's standard network."""
    path = tmp_path_factory.mktemp("standard") / "net.safetensors"
    module = models.build("preact-tiny", in_channels=1, mean=(0.3,), std=(0.4,))
    card = checkpoints.Card(
        model="preact-tiny", num_classes=10, image_shape=(1, 8, 8), mean=(0.3,), std=(0.4,),
        dataset="digits", class_names=tuple("0123456789"),
    )  # fmt: skip
    checkpoints.save(path, module.state_dict(), card)
    return path


def trained(chosen, digits, updates=3):
    training = assemble(chosen, digits)
    update, state = training.update(lambda made, **_: made), training.state
    seen = {}
    for step in range(updates):
        state, metrics = update(state, training.batches(step))
        seen |= metrics
    return training, state, seen


ADDED = {"clean_loss": {"kappa": 2.0}, "restoration": {"restore": 2.0}} | {
    name: {"regularisers": {name: 2.0}} for name in regularisers()
}


@pytest.mark.parametrize("name", ADDED)
def test_each_regulariser_trains_and_is_recorded(name, digits):
    _, with_it, metrics = trained(options(**ADDED[name], cure_every=1), digits)
    _, without, _ = trained(options(cure_every=1), digits)
    assert float(metrics[name]) > 0
    assert largest_difference(with_it.params, without.params) > 1e-6


def test_every_kind_of_degradation_is_restored(digits):
    """Of the images that carry the regularisers: mixtures stay in the bounds, noise leaves them."""
    training = assemble(options(restore=1.0, cure_fraction=0.5), data.load("digits"))
    images, degraded = training.batches(0).restored
    assert len(images) == len(degraded) == 8
    outside = ((degraded < 0) | (degraded > 1)).flatten(1).any(1)
    assert not outside[:4].any()
    assert outside[4:].all()
    batches, cycle = training.batches, training.batches.options.cycle
    assert not torch.equal(batches(0).restored[1], batches(cycle).restored[1])
    assert torch.equal(batches(cycle).restored[1], batches(cycle).restored[1]), "counted"
    assert cycle > 1
    assert batches(1).restored is None, "it is drawn where it is due"


def test_hat_learns_the_standard_networks_labels(digits, standard):
    chosen = options(hat=0.5, helper=str(standard), trades=2.0)
    _, _, metrics = trained(chosen, digits)
    assert 0 < float(metrics["helper"]) < math.inf


@pytest.mark.parametrize("attack", attack_names())
@pytest.mark.parametrize("delta", ["classic", "random", "fgsm", "linf", "none"])
def test_each_attack_goes_with_each_direction(attack, delta, digits):
    if attack == "none" and delta in ("fgsm", "linf"):
        pytest.skip("refused: they look toward x̂ (test_cli)")
    chosen = options(attack=attack, delta=delta, **{"cure_every": 1} if delta != "none" else {})
    _, state, metrics = trained(chosen, digits, updates=1)
    assert all(torch.isfinite(p).all() for p in state.params.values())
    assert ("curvature" in metrics) == (delta != "none")


def test_fgsm_is_the_familys_name_of_rs_fgsm(digits):
    (_, a, _), (_, b, _) = (trained(options(attack=n), digits) for n in ("fgsm", "rs-fgsm"))
    assert largest_difference(a.params, b.params) == 0


def test_a_start_at_the_images_themselves(digits):
    batch = assemble(options(delta_init="zero"), digits).batches(0)
    assert torch.equal(batch.x, batch.start)


def test_a_batch_has_what_the_terms_need_and_no_more(digits):
    plain = assemble(options(), digits).batches(0)
    assert plain.points is plain.noise is plain.mix is None
    assert (plain.start - plain.x).abs().max() > 0.01
    full = assemble(options(delta="random", regularisers={"elle": 1.0}), digits).batches(0)
    assert full.points.shape == (16, 2, *plain.x.shape[1:])
    assert (full.points - full.x[:, None]).abs().max() <= 0.15 + 1e-6
    assert full.noise.shape == plain.x.shape
    assert ((full.mix >= 0) & (full.mix < 1)).all()
    assert torch.equal(full.x, plain.x), "one purpose's numbers do not move another's"
    assert torch.equal(full.start, plain.start)
    assert points_of(options(regularisers={"gradient-alignment": 1.0})) == 1
    assert assemble(options(attack="none"), digits).batches(0).start is None


def test_the_units_of_h(digits):
    assert input_scale(options(units="pixel"), digits.std) == 1.0
    assert input_scale(options(), digits.std) == pytest.approx(sum(digits.std) / len(digits.std))


def test_regularised_every_kth_update_k_times_as_heavy(digits):
    """The first of three updates differs from always-on at thrice the weight in nothing."""
    rare, always = options(cure_every=3, lam=0.5), options(cure_every=1, lam=1.5)
    (_, a, _), (_, b, _) = (trained(o, digits, updates=1) for o in (rare, always))
    assert largest_difference(a.params, b.params) == 0
    training, _, _ = trained(rare, digits)
    update, state = training.update(lambda made, **_: made), training.state
    names = []
    for step in range(4):
        state, metrics = update(state, training.batches(step))
        names.append("curvature" in metrics)
    assert names == [True, False, False, True]
    one = options(**ADDED["gradient-alignment"], cure_every=3)
    drawn = [assemble(one, digits).batches(step).points is not None for step in range(4)]
    assert drawn == names, "and what they look at is drawn for those alone"


def test_growth_of_h():
    paper = Growth("paper", 100)
    shares = [float(paper(step)) for step in (0, 25, 45, 65, 99)]
    assert shares == pytest.approx([0.1 / 3, 0.4 / 3, 0.8 / 3, 1.8 / 3, 1.0])
    linear = Growth("linear", 100)
    assert [float(linear(s)) for s in (0, 25, 50, 90)] == [0.0, 0.5, 1.0, 1.0]
    assert float(Growth("constant", 100)(0)) == 1.0


def test_growth_reaches_cure(digits):
    """At growth 0, z is 0 and so is the curvature."""
    training, _, metrics = trained(options(h_schedule="linear", cure_every=1), digits, updates=1)
    assert float(training.batches(0).growth) == 0.0
    _, _, full = trained(options(cure_every=1), digits, updates=1)
    # One image's gradient, twice in a batch: two kernels may round it apart.
    assert float(metrics["curvature"]) <= 1e-5 * float(full["curvature"])


def test_the_average_is_what_is_kept(digits):
    _, state, _ = trained(options(ema=0.9), digits)
    params, buffers = fr.averaged(state)
    assert largest_difference(params, state.params) > 0
    assert set(params) == set(state.params)
    assert set(buffers) == set(state.buffers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack": "fgms"}, "--attack.*fgsm"), ({"delta": "sideways"}, "--delta"),
        ({"attack": "n-fgsm", "constraint": "l2", "epsilon": 0.5}, "L-infinity"),
        ({"attack": "zerograd", "quantile": 1.0}, "--quantile"),
        ({"regularisers": {"elle": -1.0}}, "--regulariser must be"),
        ({"regularisers": {"ellle": 1.0}}, "elle"),
        ({"hat": 1.0}, "--helper"), ({"trades": 1.0, "attack": "none"}, "--trades"),
        ({"trades": 1.0, "delta_init": "zero"}, "no slope at x"),
        ({"ema": 1.0}, "--ema"), ({"cure_every": 0}, "--cure-every"),
        ({"cure_fraction": 0.0}, "--cure-fraction"), ({"cure_fraction": 1.1}, "--cure-fraction"),
        ({"trades": -1.0}, "--trades"), ({"h": math.inf}, "--h "), ({"h": -1.0}, "--h "),
        ({"lam": -1.0}, "--lambda"), ({"kappa": math.nan}, "--kappa"),
        ({"cure_statistics": "lucky"}, "--cure-statistics"),
        ({"h_schedule": "slow"}, "--h-schedule"), ({"cure_derivative": "up"}, "--cure-derivative"),
        ({"batch_size": 64}, "exceeds the 48 training images"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(given, message, digits):
    def everything():
        assemble(options(**given), digits).update(lambda made, **_: made)

    with pytest.raises(fr.FuncrobustError, match=message):
        everything()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_well_formed(preset):
    chosen = CureTrain.filled({"preset": preset})
    assert chosen.preset == preset
    assert chosen.model in models.names()
    assert chosen.precision in ("auto", "fp32", "bf16")


def test_the_documents_command_without_its_preset_says_what_it_lacks():
    said = {
        "delta": "classic", "lr_schedule": "piecewise", "lr_max": 0.1, "lr_min": 0.0, "opt": "SGD",
        "lam": 10.0, "h": 3.0, "epochs": 200,
    }  # fmt: skip
    more = unsaid(CureTrain.filled(said))
    assert "--preset paper-long adds" in more
    words = more.partition(" adds ")[2].split()
    whole = CureTrain.filled({"preset": "paper-long"})
    flags = {o.flag: (name, o) for name, o in options_of(CureTrain).items()}
    pairs = zip(words[::2], words[1::2], strict=True)
    added = {flags[flag][0]: flags[flag][1].read(value) for flag, value in pairs}
    assert added["model"] == "preact-resnet18"
    assert replace(CureTrain.filled(said | added), preset="paper-long", precision="bf16") == whole
    for other in ({"preset": "paper-long"}, {"h": 2.0}, {"epochs": 30}):
        assert unsaid(CureTrain.filled(said | other)) == ""
    assert unsaid(CureTrain()) == ""


def test_paper_long_is_the_documents_command():
    """--delta classic --lr-schedule piecewise --lr-max 0.1 --lr-min 0.0 --opt SGD, and so on."""
    chosen = CureTrain.filled({"preset": "paper-long"})
    assert (chosen.delta, chosen.lr_schedule, chosen.lr_max, chosen.lr_min) == (
        "classic", "piecewise", 0.1, 0.0,
    )  # fmt: skip
    assert (chosen.opt, chosen.lam, chosen.h, chosen.epochs) == ("SGD", 10.0, 3.0, 200)


def test_a_presets_update_is_one_graph(digits):
    """What torch.compile does on CUDA, as far as a CPU can tell: one graph, the same result.

    All presets were tried; one is enough to keep it so (a trace takes 10 s), the operators being
    traced one by one in test_compiling.
    """
    torch.compiler.reset()
    training = assemble(options(preset="cpu", precision="fp32", cure_every=1), digits)

    def compiled(update, *, state, batch):
        return fr.compile_checked(update, state, batch, backend="eager")

    update, state = training.update(compiled), training.state
    eager, expected = training.update(lambda made, **_: made), training.state
    for step in range(2):
        state, _ = update(state, training.batches(step))
        expected, _ = eager(expected, training.batches(step))
    assert largest_difference(state.params, expected.params) < 1e-3


def test_no_part_of_a_training_is_compiled_twice(digits):
    """For one with regularisers and one without: not again for what an update leaves."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    training = assemble(options(preset="cpu", precision="fp32", cure_every=2), digits)
    compiled = lambda made, **_: torch.compile(made, fullgraph=True, backend=backend)  # noqa: E731
    update, state = training.update(compiled), training.state
    for step in range(5):
        state, _ = update(state, training.batches(step))
    assert len(graphs) == 2


@pytest.mark.parametrize(("size", "batches"), [(64, 40), (129, 40), (1024, 5), (9000, 1)])
def test_statistics_are_taken_over_about_as_many_images_whatever_the_batch(size, batches):
    assert calibration(size) == batches


@pytest.mark.parametrize(
    ("given", "on_gpu", "found"),
    [(None, True, False), (None, False, None), (True, True, True), (False, True, False)],
)
def test_a_training_of_so_many_minutes_spends_none_compiling_unasked(
    monkeypatch, given, on_gpu, found
):
    """And says so in its options: those of the run, which has no minutes when it is resumed."""
    for name in ("update_seconds", "measure_seconds"):
        monkeypatch.setattr(recipe, name, lambda *_: 1.0)
    monkeypatch.setattr(recipe, "evaluating", lambda *_: None)
    monkeypatch.setattr(recipe, "chosen_test_images", lambda *_: None)
    dataset = SimpleNamespace(y_test=SimpleNamespace(is_cuda=on_gpu))
    training = mock.Mock(batches=SimpleNamespace(steps_per_epoch=1))
    options = CureTrain.filled({"preset": "paper-short", "minutes": 5.0, "compile": given})
    budget, reporter = mock.Mock(count=lambda *_: 3), Reporter.silent()
    timed = recipe._within(budget, options, training, dataset, reporter)
    assert (timed.epochs, timed.minutes, timed.compile) == (3, None, found)


def test_an_update_is_timed_as_it_will_be_launched(monkeypatch):
    """But for a compiler, whose minutes are the budget's."""
    seen = []
    launched = lambda update, *, options, **_: seen.append(options.compile) or "replay"  # noqa: E731
    monkeypatch.setattr(recipe, "launched", launched)
    monkeypatch.setattr(recipe, "update_seconds", lambda update, *_: seen.append(update) or 1.0)
    monkeypatch.setattr(recipe, "measure_seconds", lambda *_: 1.0)
    for name in ("evaluating", "chosen_test_images"):
        monkeypatch.setattr(recipe, name, lambda *_: None)
    dataset = SimpleNamespace(y_test=SimpleNamespace(is_cuda=True))
    training = mock.Mock(
        batches=SimpleNamespace(steps_per_epoch=1), update=lambda prepare: prepare("eager")
    )
    options = CureTrain.filled({"preset": "paper-short", "minutes": 5.0, "compile": True})
    recipe._within(mock.Mock(count=lambda *_: 3), options, training, dataset, Reporter.silent())
    assert seen == [False, "replay"]


@pytest.mark.parametrize("preset", ["fast", "strong"])
def test_a_presets_trades_goes_with_its_attack_alone(preset):
    """What another attack is asked for is adversarial training by it; the flags say either."""
    assert CureTrain.filled({"preset": preset, "epsilon": 0.01}).trades == 5
    plain = CureTrain.filled({"preset": preset, "attack": "rs-fgsm", "delta_init": "zero"})
    assert plain.trades is None
    assert "trades" not in as_command(plain)  # it goes without saying
    asked = CureTrain.filled({"preset": preset, "attack": "n-fgsm", "trades": 3.0})
    assert asked.trades == 3
    for options in (plain, asked, CureTrain.filled({"preset": preset, "trades": None})):
        assert parsed(*shlex.split(as_command(options))[2:]) == options


@pytest.mark.parametrize(
    ("given", "p"), [({}, math.inf), ({"epsilon": 16 / 255}, math.inf),
                     ({"constraint": "l2", "epsilon": 0.5}, 2)]
)  # fmt: skip
def test_the_steps_of_a_gpus_preset_are_as_long_as_its_ball_is_wide(given, p):
    """Two of them reach the surface, from the image itself."""
    options = CureTrain.filled({"preset": "fast", **given})
    ball = {"linf": fr.linf, "l2": fr.l2}[options.constraint](options.epsilon)
    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long)
    perturb = training_attack(options, ball).perturb(lambda w, x, _: x.flatten(1) @ w)
    found = perturb(torch.linspace(0.1, 1, 64), x, y, center=x)
    assert (found - x).flatten(1).norm(p, dim=1).tolist() == pytest.approx([options.epsilon] * 3)


def test_what_the_last_epoch_was_measured_by_is_what_is_kept(digits, tmp_path):
    """Its batch-norm statistics are taken once; an epoch that is not watched takes none."""
    given = options(robust_examples=8, watch_every=2, epochs=3, ema=0.9)
    work = recipe.Work(
        given, assemble(given, digits), digits, RunFolder.create(tmp_path, "cure-train", {}, "run"),
        Reporter.silent(),
    )  # fmt: skip
    state = work.training.state
    assert set(work.examine(0, state)) == {"lr"}
    for epoch in (1, 2):  # the second by watch_every, the third because it is the last
        other = state._replace(step=state.step + epoch)
        assert "test_worst" in work.examine(epoch, other)
        assert work.kept(other) is work.kept(other)
    assert work.kept(state) is not work.kept(other)


@pytest.mark.parametrize(("model", "said"), [("my:make", True), ("robustbench:X", False)])
def test_whose_normalisation_is_said(model, said):
    """A factory's network gets the data's, one of the zoo has its own."""
    options = CureTrain.filled({"preset": "fast", "model": model})
    line = recipe._headline(options, torch.device("cpu"))
    assert ("normalised by the data's mean" in line) == said


def test_a_log_without_its_library_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(recipe, "load_data", lambda *_, **__: pytest.fail("it began"))
    options = CureTrain.filled({"preset": "digits", "log": "tensorboard", "out": tmp_path})
    said = r"--log tensorboard needs its library \(No module named 'tensorboardX'\): pip install"
    with pytest.raises(fr.FuncrobustError, match=said):
        recipe.cure_train(options, Reporter.silent())
    assert not list(tmp_path.iterdir())
