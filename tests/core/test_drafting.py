"""Searching on a near network: what counts is the network under test, and only its own verdict."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.evaluation.drafting import Drafted
from funcrobust.core.network.functional import autocast

BALL = fr.linf(0.05)
SHARP = evaluation.sharp_pgd(BALL, step_size=0.0125, steps=8)


@pytest.fixture(scope="module")
def case():
    draw = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 48, generator=draw)}

    def predict(params, x):
        return (x - 0.5).flatten(1) @ params["w"].T

    x = torch.rand(200, 3, 4, 4, generator=draw)
    return predict, params, x, predict(params, x).argmax(1)


def attacked(case, adversary, **options):
    predict, params, x, y = case
    return evaluation.attack_all(predict, params, x, y, {"it": adversary}, **options)


def same(a, b):
    return all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def test_the_network_itself_as_draft_changes_nothing(case):
    plain = attacked(case, SHARP)
    assert 0.1 < plain.robust.float().mean() < 0.9
    assert same(attacked(case, Drafted(SHARP, lambda predict: predict)), plain)


def test_what_fools_the_draft_alone_is_searched_again(case):
    """A draft that is fooled by every image ends each search at its start: all must be redone."""

    def gullible(predict):
        return lambda params, x: torch.nn.functional.pad(predict(params, x), (0, 1), value=1e3)

    mine, plain = attacked(case, Drafted(SHARP, gullible)), attacked(case, SHARP)
    assert torch.equal(mine.robust, plain.robust)
    predict, params, _, y = case
    fell = ~mine.robust
    assert (predict(params, mine.images[fell]).argmax(1) != y[fell]).all()


def test_half_precision_finds_what_single_does(case):
    """Up to its roundings: who stands differs for a few, and all that fell fool the float32 one."""
    predict, params, _, y = case
    plain = attacked(case, SHARP)
    half = attacked(case, Drafted(SHARP, lambda p: autocast(p, torch.bfloat16)))
    assert (half.robust ^ plain.robust).sum() <= 6
    fell = ~half.robust
    assert (predict(params, half.images[fell]).argmax(1) != y[fell]).all()


@pytest.mark.parametrize("sound", [True, False])
def test_targets(case, sound):
    """Success is the target's, on the draft and on the network."""
    predict, params, x, y = case
    target = (y + 1) % 4
    adversary = evaluation.sharp_pgd(BALL, step_size=0.0125, steps=8, targeted=True)

    def shifted(predict):
        return predict if sound else lambda params, x: predict(params, x).roll(1, dims=-1)

    drafted = Drafted(adversary, shifted, targeted=True)
    given = {"numbers": torch.arange(len(x)), "targeted": True}
    mine, plain = (
        evaluation.attack_all(predict, params, x, target, {"it": each}, **given)
        for each in (drafted, adversary)
    )
    assert (mine.predicted[~mine.robust] == target[~mine.robust]).all()
    reached, by_itself = ((~found.robust).sum() for found in (mine, plain))
    assert reached >= 0.8 * by_itself > 0, "what misleads is searched again, toward the target"
    if sound:
        assert same(mine, plain)


def test_nobody_to_attack(case):
    predict, params, x, y = case
    run = evaluation.Run(torch.zeros(0, dtype=torch.int64))
    drafted = Drafted(SHARP, lambda predict: predict)
    assert len(drafted(predict, params, x[:0], y[:0], run)) == 0
