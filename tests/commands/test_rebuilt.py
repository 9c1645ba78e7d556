"""What the commands train with by default, rebuilt in ten lines from public names alone.

To the bit: both are the same operations in the same order, in one process. So nothing hangs on the
processor here, and float32 will do.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import largest

import funcrobust as fr

# --- ten lines each, of public names ------------------------------------------------------------


def cure_train(model: fr.Functional, sigma: float) -> fr.TrainingObjective:
    """N-FGSM, and CURE of λ = 0.5 on a quarter of every eighth batch, in inputs divided by σ."""

    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        attack, part = fr.n_fgsm(fr.linf(8 / 255)), batch.first(len(batch.x) // 4)
        robust = fr.adversarial(fr.cross_entropy(modes.training), attack, start=batch.start)
        cure = fr.cure(fr.cross_entropy(modes.batch), h=3.0 * sigma * batch.growth)
        weight = 8 * 0.5 * sigma
        return {"loss": (1.0, robust), "curvature": (weight, fr.at(cure, part.x, part.y))}

    return fr.training_objective(model, compose)


def psi_train(model: fr.Functional) -> fr.TrainingObjective:
    """Restoration by one step along ∇z_y, and predictions kept on x and RS-FGSM's x̂."""
    before = model.params

    def compose(modes: fr.Modes, batch) -> fr.Terms:
        predict, ball = modes.running, fr.linf(8 / 255)
        psi = fr.psi(
            fr.logit(predict), fr.unconstrained(bounds=None), step_size=64 / 300, steps=1,
            targeted=True,
        )  # fmt: skip
        restored = fr.at(fr.restoration(psi, batch.degraded), batch.x, batch.y)
        keep = fr.distillation(predict, lambda x: model.predict(before, x), hard=0.2)
        attack = fr.fgsm(fr.log_odds(predict), ball, step_size=1.25 * 8 / 255)
        robust = fr.adversarial(keep, attack, start=batch.near)
        anchor = fr.weighted_sum((0.6, keep), (1 - 0.6, robust))
        return {"restoration": (8.0, restored), "anchor": (8.0, anchor)}

    return fr.training_objective(model, compose)


def psi_train_by_drift(model: fr.Functional) -> fr.TrainingObjective:
    """The drift from images that the network has made, and half of each anchor, kept."""

    def compose(modes: fr.Modes, batch) -> fr.Terms:
        loss, ball, n = fr.cross_entropy(modes.running), fr.l2(30.0), len(batch.x) // 4
        walk, label, made = {"step_size": 0.5, "targeted": True}, batch.label[:n], batch.start[:n]
        for t in range(16):
            ahead = fr.gradient_step(loss, ball, **walk)(modes.params, made, label, batch.start[:n])
            made = torch.where(t < batch.stops[:n, None, None, None], ahead, made)
        drift = fr.drift(fr.psi(loss, ball, steps=5, **walk))
        keep = fr.distillation(modes.running, lambda x: model.predict(model.params, x))
        odds, step = fr.log_odds(modes.running), 2.5 * (8 / 255) / 3
        attack = fr.pgd(odds, fr.linf(8 / 255), step_size=step, steps=3)
        anchor = fr.weighted_sum((0.5, keep), (0.5, fr.adversarial(keep, attack)))
        return {"drift": (1.0, fr.at(drift, made.detach(), label)), "anchor": (40.0, anchor)}

    return fr.training_objective(model, compose)


# --- the commands' own --------------------------------------------------------------------------


@pytest.fixture
def objectives(monkeypatch):
    """Collects what updates are made of."""
    from funcrobust.core.training import updates

    found, make_update = [], updates.make_update

    def kept(objective, *arguments, **options):
        found.append(objective)
        return make_update(objective, *arguments, **options)

    monkeypatch.setattr(updates, "make_update", kept)
    return found


@pytest.fixture(scope="module")
def digits():
    from funcrobust import data

    return data.load("digits").subset(200, 16, 0)


def evaluated(objective, state, batch):
    """Gradient, buffers and metrics."""
    found, (buffers, metrics) = torch.func.grad(objective, has_aux=True)(
        state.params, state.buffers, batch
    )
    return {"gradient": found, "buffers": buffers, "metrics": metrics}


def same_to_the_bit(theirs, ours, state, batch):
    expected, found = (evaluated(o, state, batch) for o in (theirs, ours))
    for part, tensors in expected.items():
        assert tensors.keys() == found[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[part][name]), f"{part}: {name}"
    assert largest(found["gradient"].values()) > 1e-3


def test_cure_train(objectives, digits):
    """By its preset cpu, which is the default; on the digits, which are small."""
    from funcrobust.commands.cure_train.assemble import assemble
    from funcrobust.commands.cure_train.options import CureTrain

    given = {"preset": "cpu", "dataset": "digits", "batch_size": 32, "precision": "fp32"}
    training = assemble(CureTrain.filled(given), digits)
    training.update(lambda made, **_: made)
    (regularised,) = objectives
    rebuilt = cure_train(training.model, sum(digits.std) / len(digits.std))
    same_to_the_bit(regularised, rebuilt, training.state, training.batches(0))


@pytest.mark.parametrize(
    ("objective", "rebuilt"), [("restoration", psi_train), ("drift", psi_train_by_drift)]
)
def test_psi_train(objectives, digits, objective, rebuilt):
    from funcrobust.commands.psi_train.assemble import make_batches, make_training
    from funcrobust.commands.psi_train.compose import psi_ball
    from funcrobust.commands.psi_train.options import PsiTrain
    from funcrobust.models import build
    from funcrobust.running.restoring import fitting_step

    given = {"objective": objective, "dataset": "digits", "batch_size": 32, "precision": "fp32"}
    options = PsiTrain.filled(given)
    if options.step_size is None:
        options = replace(options, step_size=fitting_step(digits.image_shape))
    network = build("preact-tiny", in_channels=1, mean=digits.mean, std=digits.std)
    model = fr.functionalize(network)
    ball = psi_ball(options)
    _, state = make_training(options, ball, model, digits, None)
    # Away from where it began, where the anchor has no slope.
    state = state._replace(params={k: 1.05 * p for k, p in state.params.items()})
    same_to_the_bit(objectives[0], rebuilt(model), state, make_batches(options, digits)(0))
