"""What newcomers hand in by mistake: each is refused, with what was meant."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.attacks import from_images

MODULE = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
MODEL = fr.functionalize(MODULE)
PARAMS = MODEL.params
LOSS = fr.cross_entropy(MODEL.predict)
BALL = fr.linf(8 / 255)
STEPS = {"step_size": 0.01, "steps": 2}
SGD = fr.optimizer("sgd", 0.1)
PGD = fr.pgd(LOSS, BALL, **STEPS)
X = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0])

MISTAKES = {
    "a network for its function": (lambda: fr.cross_entropy(MODULE), r"functionalize\(module\)"),
    "its record for its function": (lambda: fr.cross_entropy(MODEL), r"pass its \.predict"),
    "a network for a loss": (lambda: fr.pgd(MODULE, BALL, **STEPS), r"fr\.cross_entropy\(fr\.f"),
    "its record for a loss": (lambda: fr.psi(MODEL, fr.l2(1.0), **STEPS), r"\(model\.predict\)"),
    "logits for a loss": (lambda: fr.pgd(MODEL.predict, BALL, **STEPS), r"not logits: fr\.cross"),
    "a ball for a loss": (lambda: fr.cure(BALL, h=1.0), r"such as fr\.cross_entropy\(predict\)"),
    "a radius for a ball": (lambda: fr.pgd(LOSS, 0.03, **STEPS), r"such as fr\.linf\(0\.03\)"),
    "nothing for a ball": (lambda: fr.rs_fgsm(None), r"a ball is wanted here"),
    "a ball for an attack": (lambda: fr.adversarial(LOSS, BALL), r"a ball alone: fr\.rs_fgsm"),
    "a name for an attack": (lambda: fr.trades(MODEL.predict, "pgd"), r"not 'pgd'"),
    "an attack that is called": (lambda: fr.rs_fgsm(BALL)(PARAMS, X, Y), r"attack\.perturb\(loss"),
    "losses without weights": (lambda: fr.weighted_sum(LOSS, LOSS), r"a pair, fr\.weighted_sum"),
    "gray levels for a radius": (lambda: fr.linf(8), r"gray levels are 8/255"),
    "and in the smooth ball": (lambda: fr.smooth_linf(4.0), r"exceeds the range of images"),
    "an attack for an adversary": (
        lambda: evaluation.attack_all(MODEL.predict, PARAMS, X, Y, {"pgd": PGD}),
        r"evaluation\.adversary_of\(attack, fr\.log_odds\)",
    ),
    "float labels": (lambda: LOSS(PARAMS, X, Y.float()), r"torch\.float32: y\.long\(\)"),
    "one-hot integers": (lambda: LOSS(PARAMS, X, torch.eye(4).long()[Y]), r"one class an example"),
    "a column of labels": (lambda: fr.margin(MODEL.predict)(PARAMS, X, Y[:, None]), r"\(5, 1\)"),
    "fewer labels": (lambda: fr.logit(MODEL.predict)(PARAMS, X, Y[:3]), r"have shape \(3,\)"),
    "a list of labels": (lambda: LOSS(PARAMS, X, [0, 1, 2, 3, 0]), r"classes, not a list"),
    "numpy images": (lambda: PGD(PARAMS, np.zeros((5, 3, 2, 2)), Y), r"not a ndarray"),
    "other precision": (lambda: LOSS(PARAMS, X.double(), Y), r"x\.to\(torch\.float32\)"),
    "one image alone": (
        lambda: fr.pgd(lambda p, x, y: torch.zeros(1), BALL, **STEPS)(PARAMS, X[0], Y[:1]),
        r"x\[None\]",
    ),
    "a column in an evaluation": (
        lambda: evaluation.correct(MODEL.predict, PARAMS, X, Y[:, None]), r"have shape \(5, 1\)",
    ),
    "floats in an evaluation": (
        lambda: evaluation.correct(MODEL.predict, PARAMS, X, Y.float()), r"y\.long\(\)",
    ),
    "labels from 1 on": (
        lambda: evaluation.correct(MODEL.predict, PARAMS, X, Y + 1), r"0 to 3, and the greatest",
    ),
    "adversaries without names": (
        lambda: evaluation.attack_all(MODEL.predict, PARAMS, X, Y, [evaluation.Pgd(BALL, 0.01)]),
        r"adversaries have names",
    ),
    "a network for predict in an evaluation": (
        lambda: evaluation.attack_all(MODULE, PARAMS, X, Y, {}), r"functionalize\(module\)",
    ),
    "a radius in words": (lambda: fr.linf("8/255"), r"a number >= 0, got '8/255'"),
    "a radius that is differentiated": (
        lambda: fr.l2(torch.tensor(0.5, requires_grad=True)), r"radius is being differentiated",
    ),
    "a temperature that is": (
        lambda: torch.func.grad(
            lambda t: fr.smooth_linf(0.1, temperature=t).steepest(X).sum()
        )(torch.tensor(0.1)),
        r"temperature is being differentiated",
    ),
    "a radius an example": (lambda: fr.linf(torch.rand(5)), r"one number, the same for all"),
    "a step an example": (
        lambda: fr.pgd(LOSS, BALL, step_size=torch.rand(5, 1), steps=2), r"the same for all",
    ),
    "a schedule for a step": (
        lambda: fr.pgd(LOSS, BALL, step_size=lambda t: 0.1, steps=2), r"step_size is one number",
    ),
    "one logit": (
        lambda: fr.cross_entropy(lambda p, x: x.flatten(1)[:, :1])({}, X, torch.zeros(5).long()),
        r"two at least.*torch\.cat",
    ),
    "a loss for a network's function": (lambda: fr.trades(LOSS, fr.pgd_k(BALL)), r"model\.predict"),
    "a builder of attacks": (lambda: fr.adversarial(LOSS, fr.pgd_k), r"call|builds one: fr\.pgd_k"),
    "a derivative not called": (
        lambda: fr.psi(LOSS, fr.l2(1.0), **STEPS, derivative=fr.unrolled), r"call it, fr\.unrolled",
    ),
    "a loss for an objective": (lambda: fr.make_update(LOSS, SGD), r"fr\.objective\(loss\)"),
    "two arguments for a batch": (
        lambda: fr.training_objective(MODEL, lambda m, b: {})(PARAMS, {}, X, Y), r"fr\.Batch\(x, y",
    ),
    "a loss for terms": (
        lambda: fr.training_objective(MODEL, lambda m, b: LOSS)(PARAMS, {}, fr.Batch(X, Y)),
        r"named, weighted losses",
    ),
    "terms without weights": (
        lambda: fr.training_objective(MODEL, lambda m, b: {"l": LOSS})(PARAMS, {}, fr.Batch(X, Y)),
        r"named, weighted losses",
    ),
    "a weight below 0": (lambda: fr.weighted_sum((1, LOSS), (-1, LOSS)), r"its negative, lambda"),
    "a ball without samples": (
        lambda: fr.pgd(LOSS, type("Half", (), {"project": 1})(), **STEPS), r"lacks steepest",
    ),
    "a seed for a generator": (lambda: BALL.sample(X, 0), r"fr\.generator\(seed, purpose\)"),
    "a key for a generator": (
        lambda: MODEL.predict_train(PARAMS, {}, X, fr.key(0, "mask")), r"key=key",
    ),
    "a number for keys": (lambda: fr.expectation(MODEL, 16), r"keys are \(K, 2\).*not 16"),
    "labels for what is right": (
        lambda: fr.certified_accuracy(torch.rand(5), Y, [0.1]), r"label == y",
    ),
    "an attack for an adversary's name": (
        lambda: evaluation.attack_all(MODEL.predict, PARAMS, X, Y, {"pgd": fr.pgd_k(BALL)}),
        r"evaluation\.adversary_of\(attack, fr\.log_odds\)",
    ),
    "a perturbation for an attack": (
        lambda: evaluation.adversary_of(PGD, fr.log_odds), r"fr\.pgd_k\(ball\)",
    ),
    "no restarts": (
        lambda: evaluation.adversary_of(fr.pgd_k(BALL), fr.log_odds, restarts=0), r"restarts must",
    ),
    "labels smoothed below 0": (
        lambda: fr.cross_entropy(MODEL.predict, label_smoothing=-0.5), r"in \[0, 1\]",
    ),
    "labels below 0": (
        lambda: evaluation.correct(MODEL.predict, PARAMS, X, Y - 1), r"the least is -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_is_refused_with_what_was_meant(mistake):
    make, said = MISTAKES[mistake]
    with pytest.raises(fr.FuncrobustError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_looks_like_one_and_is_none():
    shares = torch.full((5, 4), 0.25)
    assert LOSS(PARAMS, X, shares).shape == (5,)
    assert LOSS(PARAMS, X, Y.int()).shape == (5,)
    each = torch.func.vmap(lambda x, y: LOSS(PARAMS, x[None], y[None])[0])(X, Y)
    torch.testing.assert_close(each, LOSS(PARAMS, X, Y))
    assert fr.linf(float("inf")).radius == float("inf")
    assert fr.linf(8, bounds=(0, 255)).radius == 8
    assert fr.adversarial(LOSS, lambda params, start, y, *, center=None: start)(PARAMS, X, Y).shape

    class Own:
        """A loss that keeps its network, as a class of one's own may."""

        predict = staticmethod(MODEL.predict)

        def __call__(self, params, x, y):
            return LOSS(params, x, y)

    assert torch.equal(fr.pgd(Own(), BALL, **STEPS)(PARAMS, X, Y), PGD(PARAMS, X, Y))

    def own(predict, params, x, y, run, *, more=1):
        return x

    found = evaluation.attack_all(MODEL.predict, PARAMS, X, Y, {"own": own})
    assert torch.equal(found.robust, evaluation.correct(MODEL.predict, PARAMS, X, Y))


def test_an_attack_without_its_start_says_so():
    attack = fr.rs_fgsm(BALL)
    with pytest.warns(UserWarning, match=r"attack\.start\(x, generator\)"):
        fr.adversarial(LOSS, attack)
    with pytest.warns(UserWarning, match=r"start=x"):
        fr.trades(MODEL.predict, attack)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fr.adversarial(LOSS, from_images(attack))
        fr.adversarial(LOSS, attack, start=X)
        fr.adversarial(LOSS, attack, start=attack.start(X, fr.generator(0, "start")))
        fr.adversarial(LOSS, PGD)


def test_a_number_as_a_tensor_that_has_a_derivative_is_no_warning():
    step = torch.tensor(0.1, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fr.psi(LOSS, fr.l2(1.0), step_size=step, steps=2, derivative=fr.unrolled())
