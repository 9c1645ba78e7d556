"""From flags to operators: every method trains, and nonsense is refused in one line."""

from __future__ import annotations

import math

import pytest
import torch
from problems import largest_difference

import funcrobust as fr
from funcrobust import checkpoints, data, models
from funcrobust.commands.cure_train import methods, presets
from funcrobust.commands.cure_train.assemble import assemble

CPU = torch.device("cpu")


def options(**given):
    given = {"dataset": "digits", "batch_size": 16, "epochs": 2, "epsilon": 0.15} | given
    return presets.cure_options(given, "digits", CPU)


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
        state, metrics = update(state, *training.batches(step))
        seen |= metrics
    return training, state, seen


REGULARISERS = {
    "kappa": "clean_loss", "gradalign": "gradalign", "llr": "llr", "elle": "elle",
    "input_gradient": "gradient_penalty",
}  # fmt: skip


@pytest.mark.parametrize("flag", REGULARISERS)
def test_each_regulariser_trains_and_is_recorded(flag, digits):
    _, with_it, metrics = trained(options(**{flag: 2.0, "cure_every": 1}), digits)
    _, without, _ = trained(options(cure_every=1), digits)
    assert float(metrics[REGULARISERS[flag]]) > 0
    assert largest_difference(with_it.params, without.params) > 1e-6


def test_hat_learns_the_standard_networks_labels(digits, standard):
    chosen = options(hat=0.5, helper=str(standard), trades=2.0)
    _, _, metrics = trained(chosen, digits)
    assert 0 < float(metrics["helper"]) < math.inf


@pytest.mark.parametrize("attack", ["rs-fgsm", "fgsm", "n-fgsm", "zerograd", "pgd", "none"])
@pytest.mark.parametrize("delta", ["classic", "random", "FGSM", "linf", "none"])
def test_each_attack_goes_with_each_direction(attack, delta, digits):
    chosen = options(attack=attack, delta=delta, attack_steps=2, cure_every=1)
    _, state, metrics = trained(chosen, digits, updates=1)
    assert all(torch.isfinite(p).all() for p in state.params.values())
    assert ("curvature" in metrics) == (delta != "none")


def test_fgsm_is_the_familys_name_of_rs_fgsm(digits):
    (_, a, _), (_, b, _) = (trained(options(attack=n), digits) for n in ("fgsm", "rs-fgsm"))
    assert largest_difference(a.params, b.params) == 0


def test_a_start_at_the_images_themselves(digits):
    _, x, start = (None, *assemble(options(delta_init="zero"), digits).batches(0)[::2][:2])
    assert torch.equal(x, start)


def test_regularised_every_kth_update_k_times_as_heavy(digits):
    """The first of three updates differs from always-on at thrice the weight in nothing."""
    rare, always = options(cure_every=3, lam=0.5), options(cure_every=1, lam=1.5)
    (_, a, _), (_, b, _) = (trained(o, digits, updates=1) for o in (rare, always))
    assert largest_difference(a.params, b.params) == 0
    training, _, _ = trained(rare, digits)
    update, state = training.update(lambda made, **_: made), training.state
    names = []
    for step in range(4):
        state, metrics = update(state, *training.batches(step))
        names.append("curvature" in metrics)
    assert names == [True, False, False, True]


def test_growth_of_h():
    paper = methods.Growth("paper", 100)
    shares = [float(paper(step)) for step in (0, 25, 45, 65, 99)]
    assert shares == pytest.approx([0.1 / 3, 0.4 / 3, 0.8 / 3, 1.8 / 3, 1.0])
    linear = methods.Growth("linear", 100)
    assert [float(linear(s)) for s in (0, 25, 50, 90)] == [0.0, 0.5, 1.0, 1.0]
    assert float(methods.Growth("constant", 100)(0)) == 1.0


def test_growth_reaches_cure(digits):
    """At growth 0, z is 0 and so is the curvature."""
    _, _, metrics = trained(options(h_schedule="linear", cure_every=1), digits, updates=1)
    assert float(metrics["curvature"]) == 0.0


def test_the_average_is_what_is_kept(digits):
    _, state, _ = trained(options(ema=0.9), digits)
    params, buffers = fr.averaged(state)
    assert largest_difference(params, state.params) > 0
    assert set(params) == set(state.params)
    assert set(buffers) == set(state.buffers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack": "fgms"}, "unknown attack"), ({"delta": "sideways"}, "--delta"),
        ({"attack": "n-fgsm", "constraint": "l2", "epsilon": 0.5}, "L-infinity"),
        ({"attack": "zerograd", "quantile": 1.0}, "quantile"), ({"elle": -1.0}, "elle"),
        ({"hat": 1.0}, "--helper"), ({"trades": 1.0, "attack": "none"}, "--trades"),
        ({"ema": 1.0}, "ema"), ({"cure_every": 0}, "cure_every"), ({"trades": -1.0}, "trades"),
        ({"h_schedule": "slow"}, "--h-schedule"), ({"cure_backward": "up"}, "--cure-backward"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(given, message, digits):
    def everything():
        chosen = options(**given)
        methods.check(chosen)
        assemble(chosen, digits).update(lambda made, **_: made)

    with pytest.raises(fr.FuncrobustError, match=message):
        everything()


@pytest.mark.parametrize("preset", presets.CURE_PRESETS)
def test_every_preset_is_well_formed(preset):
    chosen = presets.cure_options({}, preset, CPU)
    methods.check(chosen)
    assert chosen.model in models.names()
    assert chosen.precision in ("fp32", "bf16")


def test_paper_long_is_the_documents_command():
    """--delta classic --lr-schedule piecewise --lr-max 0.1 --lr-min 0.0 --opt SGD, and so on."""
    chosen = presets.cure_options({}, "paper-long", CPU)
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
    given = {"dataset": "digits", "batch_size": 16, "epochs": 2, "cure_every": 1}
    training = assemble(presets.cure_options(given, "cpu", CPU), digits)

    def compiled(update, *, state, batch):
        return fr.compile_checked(update, state, *batch, backend="eager")

    update, state = training.update(compiled), training.state
    eager, expected = training.update(lambda made, **_: made), training.state
    for step in range(2):
        state, _ = update(state, *training.batches(step))
        expected, _ = eager(expected, *training.batches(step))
    assert largest_difference(state.params, expected.params) < 1e-3
