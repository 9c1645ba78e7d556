"""From options to operators: every method trains."""

from __future__ import annotations

import math

import pytest
import torch
from problems import largest_difference

import funcrobust as fr
from funcrobust import checkpoints, data, models
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.commands.cure_train.compose import Growth
from funcrobust.commands.cure_train.options import attack_names, regularisers


def options(**given):
    return CureTrain.filled({"preset": "digits", "batch_size": 16, "epochs": 2} | given)


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


@pytest.mark.parametrize("name", [*regularisers(), "kappa"])
def test_each_regulariser_trains_and_is_recorded(name, digits):
    added = {"kappa": 2.0} if name == "kappa" else {"regularisers": {name: 2.0}}
    _, with_it, metrics = trained(options(**added, cure_every=1), digits)
    _, without, _ = trained(options(cure_every=1), digits)
    assert float(metrics["clean_loss" if name == "kappa" else name]) > 0
    assert largest_difference(with_it.params, without.params) > 1e-6


def test_hat_learns_the_standard_networks_labels(digits, standard):
    chosen = options(hat=0.5, helper=str(standard), trades=2.0)
    _, _, metrics = trained(chosen, digits)
    assert 0 < float(metrics["helper"]) < math.inf


@pytest.mark.parametrize("attack", attack_names())
@pytest.mark.parametrize("delta", ["classic", "random", "fgsm", "linf", "none"])
def test_each_attack_goes_with_each_direction(attack, delta, digits):
    given = {"attack_steps": 2} if attack == "pgd" else {}
    given |= {} if delta == "none" else {"cure_every": 1}
    chosen = options(attack=attack, delta=delta, **given)
    _, state, metrics = trained(chosen, digits, updates=1)
    assert all(torch.isfinite(p).all() for p in state.params.values())
    assert ("curvature" in metrics) == (delta != "none")


def test_fgsm_is_the_familys_name_of_rs_fgsm(digits):
    (_, a, _), (_, b, _) = (trained(options(attack=n), digits) for n in ("fgsm", "rs-fgsm"))
    assert largest_difference(a.params, b.params) == 0


def test_a_start_at_the_images_themselves(digits):
    batch = assemble(options(delta_init="zero"), digits).batches(0)
    assert torch.equal(batch.x, batch.start)


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


def test_growth_of_h():
    paper = Growth("paper", 100)
    shares = [float(paper(step)) for step in (0, 25, 45, 65, 99)]
    assert shares == pytest.approx([0.1 / 3, 0.4 / 3, 0.8 / 3, 1.8 / 3, 1.0])
    linear = Growth("linear", 100)
    assert [float(linear(s)) for s in (0, 25, 50, 90)] == [0.0, 0.5, 1.0, 1.0]
    assert float(Growth("constant", 100)(0)) == 1.0


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


def test_a_presets_update_is_one_graph(digits):
    """What torch.compile does on CUDA, as far as a CPU can tell: one graph, the same result.

    All presets were tried; one is enough to keep it so (a trace takes 10 s), the operators being
    traced one by one in test_compiling.
    """
    torch.compiler.reset()
    given = {"preset": "cpu", "dataset": "digits", "batch_size": 16, "epochs": 2, "cure_every": 1}
    training = assemble(CureTrain.filled(given), digits)

    def compiled(update, *, state, batch):
        return fr.compile_checked(update, state, batch, backend="eager")

    update, state = training.update(compiled), training.state
    eager, expected = training.update(lambda made, **_: made), training.state
    for step in range(2):
        state, _ = update(state, training.batches(step))
        expected, _ = eager(expected, training.batches(step))
    assert largest_difference(state.params, expected.params) < 1e-3
