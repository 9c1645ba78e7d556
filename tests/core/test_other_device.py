"""On a device that is not the host's: nothing is left behind, and a training waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from other_device import DEVICE, brought_back, moved, other_device
from problems import largest
from torch import Tensor
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust import cli, data, models
from funcrobust.commands.cure_train.assemble import assemble
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.commands.psi_train.assemble import make_batches, make_training
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import known_inside

LINF, L2 = fr.linf(8 / 255), fr.l2(0.5)


@pytest.fixture
def waits() -> Iterator[list[str]]:
    with other_device() as waits:
        yield waits


# --- the device itself ---------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix(waits):
    far = moved(torch.arange(3.0))
    with pytest.raises(RuntimeError, match="of the host"):
        far + torch.ones(3)
    assert brought_back(far + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RuntimeError, match="numpy"):
        far.numpy()


def test_a_generator_draws_where_it_is(waits):
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=fr.generator(0, "a"), device=DEVICE)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=fr.generator(0, "a", device=DEVICE))
    assert torch.rand(2, generator=fr.generator(0, "a", device=DEVICE), device=DEVICE).shape == (2,)


@pytest.mark.parametrize(
    "wait",
    [float, lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: bool(x > 0),
     lambda x: x.tolist(), lambda x: x.reshape(1)[x.reshape(1) > 0],
     lambda x: x + torch.tensor(1.0, device=DEVICE)],
)  # fmt: skip
def test_waits_are_counted(wait, waits):
    far = moved(torch.tensor(2.0))
    before = len(waits)
    wait(far)
    assert len(waits) > before


# --- the operators -------------------------------------------------------------------------------

Made = Callable[[fr.Functional, Tensor, Tensor], object]
SHIFT = 0.01


def slope(loss: Callable[[fr.Functional, Tensor], fr.Loss]) -> Made:
    def of(model: fr.Functional, x: Tensor, y: Tensor) -> object:
        return grad(fr.mean(loss(model, x)))(model.params, x, y)

    return of


def attacked(build: Callable[[fr.Loss], fr.Perturbation]) -> Made:
    def of(model: fr.Functional, x: Tensor, y: Tensor) -> object:
        return build(fr.cross_entropy(model.predict))(model.params, x, y)

    return of


def restart(model: fr.Functional, x: Tensor, y: Tensor) -> object:
    draw = fr.generator(0, "start", device=x.device)
    return [ball.sample(x, draw) for ball in (LINF, L2, fr.fourier())]


def ce(model: fr.Functional) -> fr.Loss:
    return fr.cross_entropy(model.predict)


def psi(model: fr.Functional, derivative: fr.Derivative) -> fr.Perturbation:
    return fr.psi(ce(model), fr.l2(30.0), step_size=0.1, steps=3, derivative=derivative)


OPERATORS: dict[str, Made] = {
    "PGD in L-infinity": attacked(lambda loss: fr.pgd(loss, LINF, step_size=0.01, steps=3)),
    "PGD in L2": attacked(lambda loss: fr.pgd(loss, L2, step_size=0.2, steps=3)),
    "Auto-PGD": attacked(lambda loss: fr.apgd(loss, LINF, steps=5)),
    "FGSM": attacked(lambda loss: fr.fgsm(loss, LINF, step_size=0.03)),
    "starts": restart,
    "adjoint": slope(lambda model, _: fr.drift(psi(model, fr.adjoint()))),
    "adjoint, every other": slope(lambda model, _: fr.drift(psi(model, fr.adjoint(every=2)))),
    "unrolled": slope(lambda model, _: fr.drift(psi(model, fr.unrolled()))),
    "truncated": slope(lambda model, _: fr.drift(psi(model, fr.truncated(1)))),
    "CURE": slope(lambda model, _: fr.cure(ce(model), 0.7)),
    "GradAlign": slope(lambda model, x: fr.gradient_alignment(ce(model), toward=x + SHIFT)),
    "LLR": slope(lambda model, x: fr.local_linearity(ce(model), start=x + SHIFT,
                                                     attack=fr.pgd_k(LINF, step_size=0.01))),
    "ELLE": slope(lambda model, x: fr.elle(ce(model), ends=(x + SHIFT, x - SHIFT),
                                           mix=torch.full((len(x),), 0.3, device=x.device))),
    "gradient norm": slope(lambda model, _: fr.input_gradient_norm(ce(model))),
    "TRADES": slope(lambda model, x: fr.trades(
        model.predict, fr.pgd(fr.kl_divergence(model.predict, model.predict(model.params, x)), LINF,
                              step_size=0.01, steps=2), beta=6.0, start=x + SHIFT)),
    "examples apart": lambda model, x, y: vmap(
        grad(lambda p, a, b: ce(model)(p, a[None], b[None]).sum()), in_dims=(None, 0, 0)
    )(model.params, x, y),
}  # fmt: skip


@pytest.fixture
def images(problem) -> tuple[fr.Functional, Tensor, Tensor]:
    return problem.model, problem.x, problem.y


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_gives_there_what_it_gives_here(name, images):
    here, (model, *xy) = OPERATORS[name](*images), images
    with other_device():
        there = OPERATORS[name](model.to(DEVICE), *moved(xy))
        assert all(t.device == DEVICE for t in torch.utils._pytree.tree_leaves(there))
        back = brought_back(there)
    if name == "starts":  # another generator's
        assert all(torch.isfinite(t).all() for t in back)
        return
    leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (here, back)]
    assert largest(a - b for a, b in zip(*leaves, strict=True)) <= 1e-10


def test_the_ensemble_finds_there_what_it_finds_here(images):
    """AutoAttack and PGD with restarts: numbers are counted by example, wherever it lies."""
    model, *_ = images
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model.predict(model.params, x).argmax(1)
    adversaries = evaluation.autoattack(LINF, last=evaluation.square(LINF, queries=30))
    adversaries |= {"PGD": evaluation.Pgd(LINF, step_size=0.01, steps=4, restarts=2)}
    here = evaluation.attack_all(model.predict, model.params, x, y, adversaries)
    assert here.clean.all()
    assert 0 < here.robust.sum() < len(y), "else nothing is compared"
    with other_device():
        far = model.to(DEVICE)
        there = evaluation.attack_all(far.predict, far.params, *moved((x, y)), adversaries)
        assert torch.equal(brought_back(there.robust), here.robust)
        assert torch.equal(brought_back(there.clean), here.clean)


# --- training ------------------------------------------------------------------------------------

DIGITS = {"preset": "digits", "batch_size": 16, "precision": "fp32"}


@pytest.mark.parametrize(
    "given",
    [{"attack": "n-fgsm"}, {"attack": "apgd-k", "delta": "random", "h_schedule": "linear"},
     {"attack": "pgd-k", "cure_every": 1, "regularisers": {"gradient-alignment": 1.0}},
     {"trades": 6.0, "opt": "AdamW", "cure_every": 2}],
)  # fmt: skip
def test_a_training_waits_for_nothing(given, waits):
    """Not for a step's number, nor for a look at what was drawn: the host may run ahead."""
    training = assemble(CureTrain.filled({**DIGITS, **given}), data.load("digits").to(DEVICE))
    update, state = training.update(lambda made, **_: made), training.state
    before = len(waits)
    with known_inside():
        for step in range(3):
            state, metrics = update(state, training.batches(step))
    assert waits[before:] == []
    assert all(value.device == DEVICE for value in metrics.values())
    assert all(p.isfinite().all() for p in state.params.values())


def test_restoration_waits_for_its_classes_alone(waits):
    """Which classes are to be drawn the host must know, once."""
    dataset = data.load("digits").to(DEVICE)
    module = models.build("preact-tiny", in_channels=1, mean=(0.5,), std=(0.25,))
    options = PsiTrain.filled({"batch_size": 16, "precision": "fp32", "step_size": 0.1})
    model = fr.functionalize(module).to(DEVICE)
    update, state = make_training(options, fr.unconstrained(bounds=None), model, dataset, None)
    batches = make_batches(options, dataset)
    batches(0)  # works out each class's covariance
    before = len(waits)
    with known_inside():
        state, _ = update(state, batches(0))
    assert len(waits) - before == 1


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The command line, on that device."""
    picked = "funcrobust.commands.{}.pick_device"
    for module in ("cure_train.recipe", "psi_train.recipe", "evaluate.subject", "apply.recipe"):
        monkeypatch.setattr(picked.format(module), lambda _: DEVICE)
    monkeypatch.setattr("funcrobust.running.machine.pick_device", lambda _: DEVICE)
    monkeypatch.chdir(tmp_path)

    def said(words: str) -> None:
        with other_device(), mock.patch.dict("os.environ", {"COLUMNS": "200"}):
            with pytest.raises(SystemExit) as end:
                cli.main(words.split())
            assert end.value.code == 0

    return said


def test_the_commands_run_there(commands, tmp_path):
    commands(
        "cure-train --dataset digits --epochs 1 --train-examples 128 --out runs --name a "
        "--precision fp32 --robust-examples 8 --evaluate-examples 8"
    )
    commands("evaluate runs/a --examples 6 --autoattack --save found.safetensors")
    commands("psi-train --checkpoint runs/a --updates 2 --precision fp32 --out runs --name p")
    commands("apply denoising runs/a --examples 6")
    commands("certify runs/a --examples 2 --samples 50")
    assert (tmp_path / "runs" / "p" / "checkpoint.safetensors").is_file()
    assert (tmp_path / "found.safetensors").is_file()
