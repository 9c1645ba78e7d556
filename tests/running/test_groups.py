"""Options that are listed twice, for the sake of a help without torch: once here, once in core."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

import funcrobust as fr
from funcrobust.commands.certify import Certify
from funcrobust.commands.corruptions import Corruptions
from funcrobust.commands.evaluate import Evaluate
from funcrobust.commands.minimum_norm import MinimumNorm
from funcrobust.core.training.schedules import SHAPES
from funcrobust.running.groups import Machine, Measured
from funcrobust.running.optimiser import Optimiser, Schedule
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


@pytest.mark.parametrize("command", [Evaluate, Certify, Corruptions, MinimumNorm])
def test_what_measures_a_classifier_takes_it_in_the_same_words(command):
    for name in ("checkpoint", "model", "precision"):
        assert options_of(command)[name].owner is Measured
