"""FGSM and PGD against torchattacks, foolbox and robustness: the same iterates, from one start."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from problems import DERIVATIVES, make_problem

import funcrobust as fr
from funcrobust.models import import_robustness

EPS, STEP, STEPS = 8 / 255, 2 / 255, 7
L2_EPS, L2_STEP = 0.5, 0.1
TOLERANCE = 1e-5  # some of the libraries hold what they are told, a step size say, in float32


@pytest.fixture(scope="module")
def case():
    """A network, a batch, and the random starts that all libraries are given.

    In float64: in float32 the sign of a small slope would depend on the order of a sum.
    """
    problem = make_problem()
    starts = {
        "linf": fr.linf(EPS).sample(problem.x, fr.generator(0, "linf")),
        "l2": fr.l2(L2_EPS).sample(problem.x, fr.generator(0, "l2")),
    }
    return SimpleNamespace(**vars(problem), starts=starts)


def ours(case, norm: str, steps: int, *, start=None, targeted: bool = False, y=None):
    ball, step = {"linf": (fr.linf(EPS), STEP), "l2": (fr.l2(L2_EPS), L2_STEP)}[norm]
    attack = fr.pgd(case.loss, ball, step_size=step, steps=steps, targeted=targeted)
    start = case.x if start is None else start
    return attack(case.model.params, start, case.y if y is None else y, center=case.x)


def same(a, b) -> None:
    assert (a - b).abs().max() <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 3, STEPS])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_torchattacks(case, norm, steps):
    """Iterate by iterate: the attack of 1, 3, 7 steps."""
    torchattacks = pytest.importorskip("torchattacks")
    attack = {
        "linf": lambda: torchattacks.PGD(case.module, EPS, STEP, steps, random_start=False),
        "l2": lambda: torchattacks.PGDL2(case.module, L2_EPS, L2_STEP, steps, random_start=False),
    }[norm]()
    found = ours(case, norm, steps)
    assert (found - case.x).abs().max() > 1e-3
    same(found, attack(case.x, case.y))


def test_torchattacks_targeted(case):
    torchattacks = pytest.importorskip("torchattacks")
    target = (case.y + 1) % 5
    attack = torchattacks.PGD(case.module, EPS, STEP, STEPS, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    same(ours(case, "linf", STEPS, targeted=True, y=target), attack(case.x, target))


def test_torchattacks_fgsm(case):
    torchattacks = pytest.importorskip("torchattacks")
    fgsm = fr.fgsm(case.loss, fr.linf(EPS), step_size=EPS)
    same(
        fgsm(case.model.params, case.x, case.y), torchattacks.FGSM(case.module, EPS)(case.x, case.y)
    )


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_foolbox_from_a_random_start(case, norm, steps, monkeypatch):
    foolbox = pytest.importorskip("foolbox")
    import eagerpy

    kinds = {
        "linf": (foolbox.attacks.LinfPGD, STEP, EPS),
        "l2": (foolbox.attacks.L2PGD, L2_STEP, L2_EPS),
    }
    kind, step, eps = kinds[norm]
    attack = kind(abs_stepsize=step, steps=steps, random_start=True)
    start = case.starts[norm]
    monkeypatch.setattr(attack, "get_random_start", lambda x0, e: eagerpy.astensor(start))
    model = foolbox.PyTorchModel(case.module, bounds=(0, 1), device="cpu")
    theirs = attack.run(model, case.x, foolbox.criteria.Misclassification(case.y), epsilon=eps)
    same(ours(case, norm, steps, start=start), theirs)


@pytest.fixture
def attacker(case, monkeypatch):
    """robustness's own AttackerModel, which calls .cuda() whatever the machine."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    module = import_robustness("attacker")
    dataset = SimpleNamespace(mean=torch.zeros(3), std=torch.ones(3))

    class WithLatent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case.module

        def forward(self, x, **_):
            return self.inner(x)

    return module.AttackerModel(WithLatent().eval(), dataset).eval()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robustness(case, attacker, norm, steps, targeted):
    constraint, eps, step = {"linf": ("inf", EPS, STEP), "l2": ("2", L2_EPS, L2_STEP)}[norm]
    _, theirs = attacker(
        case.starts[norm], case.y, make_adv=True, constraint=constraint, eps=eps, step_size=step,
        iterations=steps, targeted=targeted, use_best=False, orig_input=case.x,
    )  # fmt: skip
    same(ours(case, norm, steps, start=case.starts[norm], targeted=targeted), theirs)


def test_robustness_unconstrained(case, attacker):
    """Its loss is the batch mean, so its step is ours divided by the batch size."""
    _, theirs = attacker(
        case.x, case.y, make_adv=True, constraint="unconstrained", eps=1.0, step_size=2.0,
        iterations=STEPS, targeted=True, use_best=False,
    )  # fmt: skip
    attack = fr.pgd(
        case.loss, fr.unconstrained(), step_size=2.0 / len(case.x), steps=STEPS, targeted=True
    )
    same(attack(case.model.params, case.x, case.y), theirs)


@pytest.mark.parametrize("derivative", ["adjoint", "unrolled"])
def test_psi_is_robustness_walk(case, attacker, derivative):
    """ψ as the ψ document runs it: L2 steps, a radius that never binds, targeted."""
    _, theirs = attacker(
        case.x, case.y, make_adv=True, constraint="2", eps=200.0, step_size=0.1, iterations=10,
        targeted=True, use_best=False,
    )  # fmt: skip
    for radius in (200.0, math.inf):
        psi = fr.psi(
            case.loss, fr.l2(radius), step_size=0.1, steps=10, targeted=True,
            derivative=DERIVATIVES[derivative],
        )  # fmt: skip
        same(psi(case.model.params, case.x, case.y), theirs)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robustness_use_best(case, attacker, norm, targeted):
    """That best and last differ where they should is tested in tests/core/test_carried.py."""
    constraint, ball, step = {
        "linf": ("inf", fr.linf(EPS), EPS), "l2": ("2", fr.l2(L2_EPS), L2_EPS),
    }[norm]  # fmt: skip
    _, theirs = attacker(
        case.x, case.y, make_adv=True, constraint=constraint, eps=ball.radius, step_size=step,
        iterations=3, targeted=targeted, use_best=True,
    )  # fmt: skip
    attack = fr.pgd(case.loss, ball, step_size=step, steps=3, targeted=targeted, use_best=True)
    same(attack(case.model.params, case.x, case.y), theirs)


def test_robustness_custom_loss(case, attacker):
    """Their custom loss is a function of the model, ours of predict: the negative logit."""

    def theirs_loss(model, inputs, target):
        logits = model(inputs)
        return -logits.gather(1, target[:, None]).squeeze(1), logits

    _, theirs = attacker(
        case.x, case.y, make_adv=True, constraint="2", eps=3.0, step_size=0.1, iterations=STEPS,
        targeted=True, use_best=False, custom_loss=theirs_loss,
    )  # fmt: skip
    psi = fr.psi(
        fr.logit(case.model.predict), fr.l2(3.0), step_size=0.1, steps=STEPS, targeted=True
    )
    same(psi(case.model.params, case.x, case.y), theirs)


def test_torchattacks_momentum(case):
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.MIFGSM(case.module, EPS, STEP, STEPS, decay=1.0)
    ours = fr.pgd(case.loss, fr.linf(EPS), step_size=STEP, steps=STEPS, momentum=1.0)
    same(ours(case.model.params, case.x, case.y), attack(case.x, case.y))
