"""The psi-train recipe: every kind of start, its pictures, and resuming to the bit."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
import torch
from problems import largest_difference
from rich.console import Console
from safetensors.torch import load_file

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.commands import psi_train
from funcrobust.commands.psi_train import PsiTrain, assemble, recipe
from funcrobust.commands.psi_train.compose import psi_ball
from funcrobust.commands.psi_train.work import Work
from funcrobust.core.training.compiling import relative_errors
from funcrobust.models import build
from funcrobust.report.console import Reporter


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A fresh network of the digits: what is tested here needs no accuracy."""
    digits = data.load("digits")
    network = build("preact-tiny", in_channels=1, mean=digits.mean, std=digits.std)
    card = checkpoints.Card(
        model="preact-tiny", num_classes=10, image_shape=digits.image_shape, mean=digits.mean,
        std=digits.std, dataset="digits", class_names=digits.class_names,
        created="2020-01-01T00:00:00+00:00",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoints") / "untrained"
    return checkpoints.save(path, network.state_dict(), card)


@pytest.fixture
def options(untrained, tmp_path):
    return given(untrained, tmp_path, objective="drift", aim=1.0)


@pytest.fixture
def restoring(untrained, tmp_path):
    return given(untrained, tmp_path, steps=1)


def given(untrained, out, **more):
    return {
        "checkpoint": str(untrained), "out": out, "updates": 6, "batch_size": 16, "steps": 2,
        "strips": 0, "heldout_examples": 20, "evaluate_examples": 20, "evaluate_steps": 2,
        "precision": "fp32",
    } | more  # fmt: skip


def run(options, **changes):
    with Reporter.silent() as reporter:
        return psi_train.run(PsiTrain.filled(options | changes), reporter)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": "made", "drift_fraction": 0.5, "anchor_steps": 2},
        {"start": "gaussian", "entropy": 0.5},
        {"start": "noise", "psi_loss": "margin", "distance": "l1"},
        {"learn_starts": 32},
        {"anchor_loss": "keep", "anchor_steps": 2},
        {"label": "random", "anchor_loss": "robust", "psi_loss": "entropy"},
    ],
    ids=["made", "gaussian", "noise", "learned", "keep", "entropy"],
)
def test_every_start_trains_the_network(options, untrained, changes):
    result = run(options, name="run", **changes)
    assert result.status == "finished"
    before, after = load_file(untrained), load_file(result.run.path / "checkpoint.safetensors")
    assert before.keys() == after.keys(), "learned starts are no part of the network"
    assert any(not torch.equal(before[k], after[k]) for k in before if "weight" in k)
    records = result.run.metrics()
    assert [r["step"] for r in records] == list(range(7))
    assert ("entropy" in records[-1]) == ("entropy" in changes)
    pictures = {p.name for p in result.run.path.glob("*.png")}
    assert pictures >= {"before_after.png", "curves.png"}
    assert ("starts.png" in pictures) == ("learn_starts" in changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"mixed": 1.0}, {"mixed": 0.0, "steps": 3}, {"drift_weight": 0.1, "ema": 0.0}],
    ids=["default", "mixed", "noise", "drift too"],
)
def test_restoration_trains_the_network(restoring, changes):
    result = run(restoring, name="run", **changes)
    records = result.run.metrics()
    assert records[-1]["restoration"] > 0
    assert ("drift" in records[-1]) == ("drift_weight" in changes)
    assert {"restored", "restored_before", "drift", "clean", "robust"} <= set(result.metrics)
    _, card = checkpoints.load(str(result.run.path))
    one = changes.get("steps", 1) == 1  # of three steps none restores alone
    assert card.created > "2021", "its own date, not that of the network before"
    assert card.restoring_step == (pytest.approx(64 / 300) if one else None), "8 by 8 pixels"


def test_restoration_restores(restoring):
    """Eighty updates of a network that never saw an image: it removes noise, and knows the digits'
    common look."""
    result = run(
        restoring, name="run", updates=80, heldout_examples=200, lr_max=0.01, ema=0.0, anchor=0.0
    )
    assert result.metrics["restored"] > result.metrics["restored_before"] + 0.5


@pytest.mark.parametrize("changes", [{"restore": 0.0}, {"mixed": 1.0}, {"steps": 3}])
def test_a_control_sees_the_same_images(restoring, cifar, changes):
    """Mirrored, too: what differs between variants is ψ's term alone."""
    few = cifar.subset(64, 16, 0)
    ours, theirs = (
        assemble.make_batches(PsiTrain.filled(restoring | more), few)(0) for more in ({}, changes)
    )
    for part in ("x", "y", "near"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    whole = data.as_float(few.x_train)
    mirrored = [not (x == whole).flatten(1).all(1).any() for x in ours.x]
    assert any(mirrored)
    assert not all(mirrored)


def test_an_objective_is_more_than_a_label(untrained):
    with pytest.raises(fr.FuncrobustError, match="these are not the values of objective 'drift'"):
        PsiTrain(objective="drift", checkpoint=str(untrained))


def test_strips_are_left_along_the_way(options):
    result = run(options, strips=2, name="run", updates=10)
    strips = sorted(p.name for p in (result.run.path / "strips").iterdir())
    assert strips == ["step-00005.png", "step-00010.png"]


@pytest.mark.parametrize("updates", [1, 3, 10, 11, 25, 6000])
def test_so_many_strips_as_asked_for(updates):
    """Or one after every part, where there are fewer; the last of them after the last part."""
    parts = recipe.parts_of(updates)
    assert parts <= recipe.RECORDS
    for strips in range(13):
        where = [part for part in range(parts) if recipe.pictured(part, parts, strips)]
        assert len(where) == min(strips, parts)
        assert where[-1:] == ([parts - 1] if strips else [])
    assert [p for p in range(10) if recipe.pictured(p, 10, 5)] == [1, 3, 5, 7, 9]


@pytest.fixture
def in_l2(untrained, tmp_path):
    module, card = checkpoints.load(untrained)
    card = replace(card, constraint="l2", epsilon=0.5)
    return str(checkpoints.save(tmp_path / "in_l2", module.state_dict(), card))


def test_a_radius_of_another_norm_is_not_taken_for_one_in_linf(restoring, in_l2):
    said = r"the checkpoint's ε = 0.5 is a radius in l2: give --epsilon for linf"
    with pytest.raises(fr.FuncrobustError, match=said):
        run(restoring, checkpoint=in_l2, name="run")
    assert not (restoring["out"] / "run").exists()


def test_the_card_says_in_what_threat_model_it_was_trained(restoring, in_l2):
    result = run(restoring, checkpoint=in_l2, updates=1, epsilon=4 / 255)
    _, card = checkpoints.read(result.run.path / "checkpoint.safetensors")
    assert (card.constraint, card.epsilon) == ("linf", 4 / 255)
    assert "--epsilon 4/255" in card.command


def test_a_log_without_its_library_is_refused_before_any_work(restoring, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(recipe, "load_classifier", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(fr.FuncrobustError, match=r"--log wandb needs its library \(No module"):
        run(restoring, log="wandb")
    assert not list(restoring["out"].iterdir())


def test_interrupted_before_the_first_update_it_says_how_to_go_on(restoring, monkeypatch):
    def interrupted(_work):
        raise KeyboardInterrupt

    monkeypatch.setattr(Work, "before", interrupted)
    console = Console(file=io.StringIO(), width=500)
    with Reporter(console=console) as reporter, pytest.raises(KeyboardInterrupt):
        psi_train.run(PsiTrain.filled(restoring | {"name": "cut"}), reporter)
    folder = restoring["out"] / "cut"
    said = console.file.getvalue()
    assert f"{folder} is begun, and kept. Continue with\n" in said
    assert f"psi-train --resume {folder} --checkpoint {restoring['checkpoint']}\n" in said
    monkeypatch.undo()
    with Reporter.silent() as reporter:
        again = PsiTrain(resume=folder, checkpoint=restoring["checkpoint"])
        assert psi_train.run(again, reporter).status == "finished"


@pytest.mark.parametrize("start", ["own", "made", "learned", "degraded"])
def test_resumed_equals_uninterrupted(options, restoring, monkeypatch, start):
    """Ctrl-C while the seventh batch is drawn; then --resume, with its checkpoint said again."""
    changes = {"learn_starts": 32} if start == "learned" else {"start": start}
    if start == "degraded":
        options, changes = restoring, {}
    whole = run(options, updates=10, name="whole", **changes)
    draw = assemble.Batches.__call__

    def interrupted(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(assemble.Batches, "__call__", interrupted)
    cut = run(options, updates=10, name="cut", **changes)
    assert cut.status == "interrupted"
    monkeypatch.undo()
    with Reporter.silent() as reporter:
        resumed = psi_train.run(
            PsiTrain(resume=cut.run.path, checkpoint=options["checkpoint"]), reporter
        )
    assert resumed.status == "finished"
    assert resumed.metrics == whole.metrics
    a, b = (load_file(r.run.path / "checkpoint.safetensors") for r in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole.run.metrics() == resumed.run.metrics()


@pytest.mark.parametrize("objective", ["drift", "restoration"])
def test_the_defaults_compile(options, restoring, objective):
    """No value decides how long a loop is: the update traces into one graph."""
    options = options if objective == "drift" else restoring
    update, state, batch = assembled(options)
    torch.compiler.reset()
    eager, _ = update(state, batch)
    traced, _ = torch.compile(update, fullgraph=True, backend="eager")(state, batch)
    errors = relative_errors(state, eager, traced)  # Adam's first moments tell a gradient's size
    assert max(errors.values()) <= 1e-2
    assert largest_difference(eager.params, state.params) > 1e-4, "else nothing is compared"


def assembled(options):
    dataset = data.load("digits")
    module, card = checkpoints.load(options["checkpoint"])
    changes = {"epsilon": card.epsilon, "batch_size": 8, "step_size": 0.5}
    options = PsiTrain.filled(options | changes)
    model = fr.functionalize(module)
    ball = psi_ball(options)
    update, state = assemble.make_training(options, ball, model, dataset, None)
    return update, state, assemble.make_batches(options, dataset)(0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {"drift_weight": 1.0, "learn_starts": 10**6},
            "--learn-starts is 1000000, but there are 1400 training images",
        ),
        (
            {"drift_weight": 1.0, "label": "10"},
            "--label must be own, random or a class number below 10",
        ),
        ({"anchor": 0.0, "restore": 0.0}, "are all 0"),
        ({"derivative": "implicit:9", "steps": 9, "capture": True}, "--capture: --derivative impl"),
    ],
)
def test_bad_options_leave_nothing_behind(restoring, changes, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        run(restoring, **changes)
    assert not list(restoring["out"].iterdir())


@pytest.mark.parametrize(
    ("changes", "timed", "ran"),
    [
        ({}, (False, False, None), (False, None, None)),
        ({"compile": True}, (False, False, False), (False, True, None)),
        ({"capture": False}, (False, False, False), (False, None, False)),
        ({"derivative": "implicit", "steps": 9}, (False, False, False), (False, None, False)),
        (
            {"derivative": "implicit", "steps": 9, "compile": True},
            (False, False, False),
            (False, True, None),
        ),
    ],
    ids=["default", "compiled", "eager", "implicit", "implicit, compiled"],
)
def test_an_update_is_timed_and_launched_as_the_options_say(
    restoring, monkeypatch, changes, timed, ran
):
    """(compiles unasked, --compile, --capture) of the rehearsal, and of the run."""
    seen = []

    def launched(update, *, options, compiles, **_):
        seen.append((compiles, options.compile, options.capture))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return update

    monkeypatch.setattr(recipe, "launched", launched)
    monkeypatch.setattr(recipe, "update_seconds", lambda *_: 0.1)
    del restoring["updates"]
    with pytest.raises(KeyboardInterrupt):
        run(restoring, minutes=0.5, **changes)
    assert seen == [timed, ran]
