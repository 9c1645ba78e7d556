"""Targeted evaluation, on a linear classifier, where who can be made what has a closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import linprog

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.evaluation import targets
from funcrobust.core.evaluation.checks import CHECKS, Case

EPS = 0.02
BALL = fr.linf(EPS)


@pytest.fixture(scope="module")
def case():
    """Five classes linear in a 2×4×4 image far from the bounds, one of them the target of each.

    x can be made t within ε iff max_δ min_{j≠t} (z_t − z_j)(x + δ) > 0: a linear program.
    """
    draw = torch.Generator().manual_seed(3)
    w = 5 * torch.randn(5, 32, generator=draw, dtype=torch.float64)

    def predict(params, x):
        return (x - 0.5).flatten(1) @ params["w"].T

    x = 0.5 + 0.08 * torch.randn(60, 2, 4, 4, generator=draw, dtype=torch.float64).clamp(-2, 2)
    z = predict({"w": w}, x)
    y = z.argmax(1)
    y[::15] = (y[::15] + 1) % 5  # some are misclassified as they are
    target = targets.at_random(y, 5, torch.arange(60)).target
    target[::30] = z.argmax(1)[::30]  # the target as they are
    room = torch.tensor([_room(w, z[i], int(target[i])) for i in range(60)])
    return SimpleNamespace(predict=predict, params={"w": w}, x=x, y=y, target=target, room=room)


def _room(w, z, t):
    """The largest margin of t over all other classes in the ball."""
    others = [j for j in range(5) if j != t]
    # Maximise s where s ≤ z_t − z_j + (w_t − w_j)·δ.
    a = [[*(w[j] - w[t]).tolist(), 1.0] for j in others]
    b = [float(z[t] - z[j]) for j in others]
    bounds = [(-EPS, EPS)] * w.shape[1] + [(None, None)]
    found = linprog([0.0] * w.shape[1] + [-1.0], a, b, bounds=bounds)
    return -found.fun


ADVERSARIES = {
    "pgd": evaluation.Pgd(BALL, EPS / 4, 30, targeted=True),
    "sharp": evaluation.sharp_pgd(BALL, step_size=EPS / 4, targeted=True),
    "apgd-ce": evaluation.apgd_adversary(BALL, steps=30, targeted=True),
    "apgd-t": evaluation.apgd_adversary(BALL, steps=30, ratio=True, targeted=True),
}


def outcome(case, adversary, **options):
    return evaluation.attack_all(
        case.predict, case.params, case.x, case.target, {"it": adversary}, targeted=True, **options
    )


@pytest.mark.parametrize("name", ADVERSARIES)
def test_nobody_becomes_the_target_who_cannot_and_most_do_who_can(case, name):
    found = outcome(case, ADVERSARIES[name])
    reached, can = ~found.robust, case.room > 0
    assert 0.2 < can.double().mean() < 0.8
    assert not (reached & ~can).any(), "no point of the ball is classified so"
    # Toward one other class alone the ratio may end where a third is likeliest.
    assert (can & ~reached).sum() <= (0.4 if name == "apgd-t" else 0.2) * can.sum()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_success_is_to_be_seen_as_the_target_and_nothing_less(case, name):
    found = outcome(case, ADVERSARIES[name])
    seen = case.predict(case.params, found.images).argmax(1)
    assert torch.equal(seen == case.target, ~found.robust)
    assert torch.equal(seen, found.predicted)
    assert torch.equal(found.images[found.robust], case.x[found.robust])
    assert evaluation.inside(BALL, found.images, case.x).all()
    clean = case.predict(case.params, case.x).argmax(1)
    assert torch.equal(found.clean, clean != case.target)
    assert (~found.clean).sum() >= 2, "some are the target as they are"


def test_who_else_is_in_the_batch_does_not_matter(case):
    whole, small = (outcome(case, ADVERSARIES["sharp"], batch_size=b) for b in (500, 7))
    assert torch.equal(whole.fell_to, small.fell_to)


def test_targets_are_never_the_label(case):
    numbers = torch.arange(2000)
    y = numbers % 5
    kept, target = targets.at_random(y, 5, numbers, seed=1)
    assert torch.equal(kept, numbers)
    assert (target != y).all()
    for label in range(5):
        counts = target[y == label].bincount(minlength=5)
        assert counts[counts > 0].tolist() != counts.tolist(), "not the label"
        assert (counts - 100).abs().sum() - 100 < 5 * 4 * 100**0.5
    part = targets.at_random(y[7:9], 5, numbers[7:9], seed=1)
    assert torch.equal(part.target, target[7:9]), "a function of the example's number"

    kept, target = targets.one_class(y, 3)
    assert torch.equal(kept, (y != 3).nonzero().squeeze(1))
    assert target.unique().tolist() == [3]
    with pytest.raises(fr.FuncrobustError, match="all of the images are of class 3"):
        targets.one_class(torch.full((4,), 3), 3)

    kept, target = targets.least_likely(case.predict, case.params, case.x, case.y, batch_size=13)
    for z, label, aimed in zip(
        case.predict(case.params, case.x).tolist(), case.y.tolist(), target.tolist(), strict=True
    ):
        assert aimed == min((c for c in range(5) if c != label), key=z.__getitem__)


def evaluated(case, predict):
    found = evaluation.attack_all(
        predict, case.params, case.x, case.target, {"it": ADVERSARIES["sharp"]}, targeted=True
    )
    return Case(
        predict, case.params, case.x, case.target, BALL, found, torch.arange(60),
        step_size=EPS / 4, targeted=True, surrogate=(case.predict, case.params),
        stronger=evaluation.sharp_pgd(BALL, step_size=EPS / 4, steps=60, targeted=True),
    )  # fmt: skip


def test_checks_ask_of_the_target(case):
    honest = evaluated(case, case.predict)
    found = {name: check(honest) for name, check in CHECKS.items()}
    assert found["without_gradients"].passed is None
    assert "no target" in found["without_gradients"].figure
    # In bytes: not asked of images that just cross a boundary of their own.
    others = {n: c for n, c in found.items() if n not in ("without_gradients", "in_bytes")}
    assert all(check.passed for check in others.values()), others


def test_a_slope_that_is_wrong_fails_them(case):
    def masked(params, x):
        return case.predict(params, x.detach() - 1e-3 * (x - x.detach()))

    found = {name: check(evaluated(case, masked)) for name, check in CHECKS.items()}
    assert {"climbs", "everything", "transferred"} <= {
        name for name, check in found.items() if check.passed is False
    }
