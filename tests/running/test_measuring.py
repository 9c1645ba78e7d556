"""What an epoch's figures see."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.report.console import Reporter
from funcrobust.running.collapse import collapse
from funcrobust.running.dataset import Chosen
from funcrobust.running.measuring import measure

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


def test_a_network_that_learns_a_mask_is_stopped():
    def record(epoch, predict):
        found = {f"train_{name}": value for name, value in figures(predict, 100).items()}
        return {"epoch": epoch, **found}

    def honest(_, x):
        return torch.eye(10)[0] - 0.5 + 0 * x.flatten(1).mean(1, keepdim=True)

    assert collapse([record(1, honest), record(2, honest)], 100) == ""
    assert "in epoch 2" in collapse([record(1, honest), record(2, decoy(1e4))], 100)
