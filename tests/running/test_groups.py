"""Options that are listed twice, for the sake of a help without torch: once here, once in core."""

from __future__ import annotations

import shlex
from typing import get_args, get_type_hints

import pytest
from problems import parsed

import funcrobust as fr
from funcrobust.commands.certify import Certify
from funcrobust.commands.corruptions import Corruptions
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.presets import PRESETS
from funcrobust.commands.evaluate import Evaluate
from funcrobust.commands.minimum_norm import MinimumNorm
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.core.training.schedules import SHAPES
from funcrobust.running.config import as_command, to_config
from funcrobust.running.groups import Machine, Measured
from funcrobust.running.optimiser import TYPICAL, Opt, Optimiser, Schedule, unusual_rate
from funcrobust.running.option import options_of


def test_schedules_are_those_of_the_core():
    assert set(get_args(Schedule)) == set(SHAPES)


def test_optimisers_are_those_of_the_core():
    for name in get_args(get_type_hints(Optimiser)["opt"]):
        fr.optimizer(name, 0.1)


@pytest.mark.parametrize("device", ["tpu", "cuda:", "CPU", "cuda:x", ""])
def test_devices_that_are_none(device):
    with pytest.raises(fr.FuncrobustError, match=r"device"):
        Machine(device=device)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_devices(device):
    assert Machine(device=device).device == device


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 0.5, "opt": "Adam"}, "--momentum does nothing here: it needs --opt SGD"),
        ({"lr_min": 0.2, "lr_max": 0.1}, "--lr-min 0.2 exceeds --lr-max 0.1"),
        ({"lr_min": 0.01, "lr_schedule": "constant"}, "--lr-min does nothing here"),
        ({"opt": "sgd"}, "did you mean 'SGD'"), ({"batch_size": 0}, "--batch-size"),
    ],
)  # fmt: skip
def test_an_optimiser_that_makes_no_sense(given, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        Optimiser(**given)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("opt", get_args(Opt))
def test_rate_and_decay_are_the_optimisers(preset, opt):
    """A preset's own with its own, else what is typical; a card's command says the same."""
    usual = CureTrain.filled({"preset": preset})
    options = CureTrain.filled({"preset": preset, "opt": opt})
    typical = TYPICAL[opt]
    if opt != usual.opt:
        assert (options.lr_max, options.weight_decay) == tuple(typical.values())
    else:
        assert options == usual
    words = shlex.split(as_command(options))
    again = parsed(*words[words.index("cure-train") :])
    assert to_config(again) == to_config(options)
    given = CureTrain.filled({"preset": preset, "opt": opt, "lr_max": 0.02, "weight_decay": 0.0})
    assert (given.lr_max, given.weight_decay) == (0.02, 0.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"opt": "Muon", "lr_max": 0.2}, "--lr-max 0.2 is 40 times what Muon usually takes, 0.005"),
     ({"opt": "Muon", "lr_max": 0.05}, ""), ({"opt": "SGD", "lr_max": 30.0}, ""),
     ({"opt": "Adam", "lr_max": 0.1}, "is 100 times what Adam usually takes, 0.001: a rate of")],
)  # fmt: skip
def test_a_rate_of_another_optimiser_is_named(given, said):
    found = unusual_rate(CureTrain.filled({"preset": "cpu", **given}))
    assert said in found
    assert bool(found) is bool(said)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_presets_rate_is_unusual(preset):
    assert unusual_rate(CureTrain.filled({"preset": preset})) == ""


def test_another_optimiser_alone_is_no_options_in_python():
    with pytest.raises(fr.FuncrobustError, match=r"CureTrain.filled\({'opt': 'SGD', ...}\)"):
        CureTrain(opt="SGD")
    with pytest.raises(fr.FuncrobustError, match="give lr_max and weight_decay"):
        CureTrain(opt="SGD", lr_max=0.1)  # with Muon's decay, 600 times SGD's
    assert CureTrain(opt="SGD", lr_max=0.1, weight_decay=5e-4).lr_max == 0.1


def test_learnt_starts_are_no_matrices():
    with pytest.raises(fr.FuncrobustError, match="--opt Muon is for matrices"):
        PsiTrain.filled({"objective": "drift", "learn_starts": 8, "opt": "Muon"})


@pytest.mark.parametrize("command", [Evaluate, Certify, Corruptions, MinimumNorm])
def test_what_measures_a_classifier_takes_it_in_the_same_words(command):
    for name in ("checkpoint", "model", "precision"):
        assert options_of(command)[name].owner is Measured
