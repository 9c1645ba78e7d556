"""What an epoch's figures see."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.report.console import Reporter
from funcrobust.running.collapse import collapse
from funcrobust.running.dataset import Chosen
from funcrobust.running.measuring import measure, withstood

RADIUS = 0.1


def decoy(scale):
    r"""A linear network that hides its way out behind its confidence.

    Of ten classes, 0 is the images', 1 the decoy. With u the pixels' mean change over the radius,

        z = scale·(0, −1 − u/20, −2 + 4u, …, −2 + 4u)

    so that u > 1/2 fools it, while the likeliest other class alone, all that a confident network's
    cross-entropy has a slope toward, leads to u = −1.
    """

    def predict(_, x):
        u = ((x - 0.5) / RADIUS).flatten(1).mean(1)
        others = (4 * u - 2).unsqueeze(1).expand(-1, 8)
        return scale * torch.cat([torch.stack([0 * u, -1 - u / 20], 1), others], 1)

    return predict


def figures(predict, examples=12):
    x, y = torch.full((examples, 3, 16, 16), 0.5), torch.zeros(examples, dtype=torch.int64)
    images = Chosen(torch.arange(examples), x, y)
    with Reporter.silent() as reporter:
        return measure(
            predict, {}, images, reporter, ball=fr.linf(RADIUS), steps=10, seed=0, title="both"
        )


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_the_second_attack_sees_past_a_mask(scale):
    assert figures(decoy(scale)) == {"clean": 1.0, "robust": 1.0, "worst": 0.0}


@pytest.mark.parametrize(("sharpness", "blind"), [(10.0, True), (3.0, False)])
def test_one_sharpness_alone_can_be_blind(sharpness, blind):
    x, y = torch.full((12, 3, 16, 16), 0.5), torch.zeros(12, dtype=torch.int64)
    attack = evaluation.sharp_pgd(
        fr.linf(RADIUS), step_size=RADIUS / 4, steps=10, sharpness=(sharpness,)
    )
    assert evaluation.robust(decoy(1e4), {}, x, y, attack).tolist() == [blind] * 12


def test_without_the_confidence_the_first_sees_as_much():
    assert figures(decoy(1.0)) == {"clean": 1.0, "robust": 0.0, "worst": 0.0}


def test_neither_fools_what_cannot_be_fooled():
    def constant(_, x):
        return (
            torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) + 0 * x.mean()
        )

    assert figures(constant) == {"clean": 1.0, "robust": 1.0, "worst": 1.0}


def brighter(by):
    """The attack that makes images brighter, whoever looks at them."""
    return fr.Attack(lambda x, _: x, lambda _: lambda params, start, y, *, center=None: start + by)


@pytest.mark.parametrize(("by", "share"), [(0.0, 0.25), (0.2, 1.0), (-0.2, 0.0)])
def test_what_is_withstood_is_what_is_right_afterwards(by, share):
    """Of four images one is right: the attack teaches the others, or fools that one."""

    def bright(_, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.55 - mean, mean - 0.55], 1) * 9

    x = torch.tensor([0.4, 0.4, 0.4, 0.6]).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    images = Chosen(torch.arange(4), x, torch.tensor([1, 1, 1, 1]))
    for size in (250, 3):
        assert withstood(bright, {}, images, brighter(by), seed=0, batch_size=size) == share


def test_no_more_images_at_a_time_than_is_said():
    seen = []

    def first(_, x):
        seen.append(len(x))
        return torch.eye(2)[0] + 0 * x.flatten(1).mean(1, keepdim=True)

    images = Chosen(torch.arange(9), torch.rand(9, 3, 8, 8), torch.zeros(9, dtype=torch.int64))
    assert withstood(first, {}, images, brighter(0.0), seed=0, batch_size=4) == 1
    assert max(seen) == 4


def test_the_start_of_an_attack_hangs_on_the_image_alone():
    def wave(_, x):
        seen = (100 * x.flatten(1).mean(1)).sin()
        return torch.stack([seen, -seen], 1)

    attack = fr.Attack(fr.linf(RADIUS).sample, lambda _: lambda params, start, y, center: start)
    x, y = torch.full((64, 3, 16, 16), 0.5), torch.zeros(64, dtype=torch.int64)
    images = Chosen(torch.arange(64), x, y)
    found = {withstood(wave, {}, images, attack, seed=3, batch_size=n) for n in (64, 7)}
    assert len(found) == 1
    assert 0 < found.pop() < 1


def test_a_network_that_learns_a_mask_is_stopped():
    def record(epoch, predict):
        found = {f"train_{name}": value for name, value in figures(predict, 100).items()}
        return {"epoch": epoch, **found}

    def honest(_, x):
        return torch.eye(10)[0] - 0.5 + 0 * x.flatten(1).mean(1, keepdim=True)

    assert collapse([record(1, honest), record(2, honest)], 100) == ""
    assert "in epoch 2" in collapse([record(1, honest), record(2, decoy(1e4))], 100)
