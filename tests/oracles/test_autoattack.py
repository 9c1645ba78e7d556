"""Auto-PGD against the reference implementation: the same iterates, from one start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import make_problem

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.evaluation.fab import targeted_fab

apgd = pytest.importorskip("pyautoattack.autopgd_base")

BALLS = {"Linf": fr.linf(8 / 255), "L2": fr.l2(0.5)}


@pytest.fixture
def float64():
    """The reference makes its tables in the default dtype, and compares losses in them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("steps", [1, 10, 50, 100])
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("norm", BALLS)
def test_same_best_image_as_the_reference(float64, norm, loss, steps):
    problem = make_problem()
    ball, predict, params = BALLS[norm], problem.model.predict, problem.params
    logits = predict(params, problem.x)
    order = logits.argsort(1, descending=True)
    # Of the two likeliest: DLR is 1 and flat where y is third, whatever the scale of rounding.
    y, target = order[:, 0], order[:, 1]
    start = ball.sample(problem.x, fr.generator(0, "start"))

    targeted = loss == "dlr-targeted"
    kind = apgd.APGDAttack_targeted if targeted else apgd.APGDAttack
    named = {} if targeted else {"loss": loss}
    reference = kind(
        lambda x: predict(params, x), n_iter=steps, norm=norm, eps=ball.radius, **named
    )
    reference.init_hyperparam(problem.x)
    reference.y_target = target
    theirs, _, their_loss, _ = reference.attack_single_run(problem.x, y, x_init=start)

    ours = {
        "ce": fr.cross_entropy(predict),
        "dlr": fr.dlr(predict),
        "dlr-targeted": fr.targeted_dlr(predict, target),
    }[loss]
    found = fr.apgd(ours, ball, steps=steps)(params, start, y, center=problem.x)
    assert (found - theirs).abs().max() <= 1e-5
    assert torch.allclose(ours(params, found, y), their_loss, atol=1e-6)
    assert (found - start).abs().max() > 1e-3


@pytest.mark.parametrize("norm", BALLS)
def test_fab_finds_what_the_reference_finds(norm):
    """Nothing in it is random: the same examples fall, but for roundings, in its float32."""
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    problem = make_problem(torch.float32)
    predict, params = problem.model.predict, problem.params
    x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    y = predict(params, x).argmax(1)
    fallen = []
    for share in (0.5, 1.0, 2.0):
        ball = replace(BALLS[norm], radius=share * BALLS[norm].radius)
        theirs = fab_pt.FABAttack_PT(
            lambda x: predict(params, x), norm=norm, n_iter=20, eps=ball.radius, targeted=True,
            n_target_classes=4,
        )  # fmt: skip
        expected = predict(params, theirs.perturb(x, y)).argmax(1) != y
        found = evaluation.attack_all(
            predict, params, x, y, {"fab": targeted_fab(ball, targets=4, steps=20)}
        )
        assert (~found.robust != expected).sum() <= 1
        fallen.append(int(expected.sum()))
    assert 0 < fallen[0] < fallen[2]
