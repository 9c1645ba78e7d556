"""``cure-train --checkpoint``: which network training begins from, and that it stays that one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from funcrobust import checkpoints, data, models
from funcrobust.commands import cure_train, psi_train
from funcrobust.commands.cure_train import CureTrain, assemble
from funcrobust.commands.cure_train.beginning import checkpointed, deviation
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.commands.psi_train import assemble as psi_assemble
from funcrobust.core.errors import FuncrobustError
from funcrobust.data.contents import contents as data_contents
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.config import as_command

MEAN, STD = (0.25,), (0.5,)
"""Not the digits' own: a network keeps the normalisation that it was trained with."""


def saved(path, seed=7, model="preact-tiny"):
    digits = data.load("digits")
    network = models.build(model, in_channels=1, mean=MEAN, std=STD, seed=seed)
    card = checkpoints.Card(
        model=model, num_classes=10, image_shape=digits.image_shape, mean=MEAN, std=STD,
        dataset="digits", class_names=digits.class_names,
    )  # fmt: skip
    return checkpoints.save(path, network.state_dict(), card)


@pytest.fixture
def given(tmp_path):
    return {
        "dataset": "digits", "checkpoint": str(saved(tmp_path / "before")), "out": tmp_path,
        "epochs": 2, "train_examples": 128, "test_examples": 40, "evaluate_examples": 40,
        "robust_examples": 20, "evaluate_steps": 2, "precision": "fp32",
    }  # fmt: skip


def run(given, **changes):
    with Reporter.silent() as reporter:
        return cure_train.run(CureTrain.filled(given | changes), reporter)


def weights(folder):
    return load_file(folder / "checkpoint.safetensors")


def interrupt(monkeypatch, batches, at):
    """Ctrl-C while a batch is drawn."""
    draw = batches.__call__

    def interrupted(self, step):
        if step == at:
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(batches, "__call__", interrupted)


def trained(tensors):
    """Those that an update moves: not the batch-norm statistics."""
    still = ("running_mean", "running_var", "num_batches_tracked")
    return {name: t for name, t in tensors.items() if not name.endswith(still)}


def test_training_begins_from_its_weights(given):
    before = load_file(given["checkpoint"])
    still = run(given, name="still", lr_max=0.0, weight_decay=0.0, ema=0.0)
    after = weights(still.run.path)
    assert all(torch.equal(t, before[name]) for name, t in trained(after).items())
    moved = weights(run(given, name="moved").run.path)
    assert not all(torch.equal(t, before[name]) for name, t in trained(moved).items())


def test_the_card_is_of_its_network_and_normalisation(given):
    result = run(given, name="kept", epochs=1)
    _, card = checkpoints.load(result.run.path)
    assert (card.model, card.mean, card.std) == ("preact-tiny", MEAN, STD)
    assert f"--checkpoint {given['checkpoint']}" in card.command
    assert card.notes.startswith(f"cure-train from {given['checkpoint']}: finished after 2 updates")


def test_cures_length_is_in_its_normalisation(given):
    """λ·σ and h·σ, σ the deviation that the network divides by; the data's, if it says none."""
    options, digits = CureTrain.filled(given), data.load("digits")
    with Reporter.silent() as reporter:
        begun = checkpointed(options, reporter)
    assert deviation(digits, begun) == STD
    assert deviation(digits, None) == digits.std
    assert deviation(digits, begun._replace(module=begun.module.net)) == digits.std
    assert assemble.input_scale(options, STD) == 0.5


@pytest.mark.parametrize("preset", ["digits", "fast"])
def test_a_checkpoint_says_which_network_it_is_of_whatever_the_preset(given, tmp_path, preset):
    own = saved(tmp_path / "smooth", model="preact-tiny-silu")
    options = CureTrain.filled({"preset": preset, "checkpoint": str(own), "dataset": "digits"})
    assert options.model == "preact-tiny-silu"


def test_its_weights_may_go_on_as_another_network_of_the_same_parameters(given):
    result = run(given, name="smooth", model="preact-tiny-silu", lr_max=0.0, ema=0.0, epochs=1)
    network, card = checkpoints.load(result.run.path)
    assert card.model == "preact-tiny-silu"
    assert "--model preact-tiny-silu" in card.command
    assert isinstance(network.net.act, nn.SiLU)
    before = load_file(given["checkpoint"])
    assert all(
        torch.equal(t, before[name]) for name, t in trained(weights(result.run.path)).items()
    )


def test_weights_that_do_not_fit_are_refused(given, tmp_path):
    with pytest.raises(FuncrobustError, match=r"does not hold the weights of a preact-small"):
        run(given, name="other", model="preact-small")
    colours = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    coloured = replace(data.load("digits"), x_train=colours, y_train=torch.arange(4))
    options = CureTrain.filled(given | {"batch_size": 2})
    with Reporter.silent() as reporter:
        begun = checkpointed(options, reporter)
    with pytest.raises(FuncrobustError, match="the checkpoint classifies 1x8x8 images"):
        assemble.assemble(options, coloured, begun=begun)
    assert not (tmp_path / "other").exists()


def test_resumed_equals_uninterrupted_and_from_another_file_is_refused(given, monkeypatch):
    whole = run(given, name="whole")
    interrupt(monkeypatch, assemble.Batches, 3)
    cut = run(given, name="cut")
    assert cut.status == "interrupted"
    monkeypatch.undo()
    again = CureTrain(resume=cut.run.path, checkpoint=given["checkpoint"])
    own = given["checkpoint"]
    another = "began from another --checkpoint: the SHA-256"
    saved(own, model="preact-small")  # which does not fit, either: it is not loaded
    with Reporter.silent() as reporter, pytest.raises(FuncrobustError, match=another):
        cure_train.run(again, reporter)
    saved(own, seed=8)
    with Reporter.silent() as reporter:
        with pytest.raises(FuncrobustError, match=another):
            cure_train.run(again, reporter)
        saved(own, seed=7)
        resumed = cure_train.run(again, reporter)
    a, b = weights(whole.run.path), weights(resumed.run.path)
    assert all(torch.equal(a[name], b[name]) for name in a)


def own_data(place, kind):
    """The digits as one's own: a file, or a folder of images."""
    digits = data.load("digits").subset(64, 32, 0)
    arrays = {n: getattr(digits, n).numpy() for n in ("x_train", "y_train", "x_test", "y_test")}
    arrays |= {n: np.arange(len(arrays[n])) % 10 for n in ("y_train", "y_test")}
    if kind == "file":
        np.savez(place.with_suffix(".npz"), **arrays)
        return place.with_suffix(".npz")
    for half in ("train", "test"):
        for i, (x, y) in enumerate(zip(arrays[f"x_{half}"], arrays[f"y_{half}"], strict=True)):
            folder = place / half / str(y)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[0]).save(folder / f"{i}.png")
    return place


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_data_that_have_moved_are_the_runs_data_still_and_others_are_not(
    tmp_path, monkeypatch, kind
):
    """As far as a digest tells: of a folder names and sizes, of a file its bytes."""
    place = own_data(tmp_path / "mine", kind)
    interrupt(monkeypatch, assemble.Batches, 3)
    given = {
        "preset": "digits", "dataset": str(place), "out": tmp_path / "runs", "name": "cut",
        "batch_size": 32, "epochs": 2, "evaluate_examples": 8, "robust_examples": 8,
        "evaluate_steps": 2, "delta": "none",
    }  # fmt: skip
    with Reporter.silent() as reporter:
        cut = cure_train.run(CureTrain.filled(given), reporter).run
        monkeypatch.undo()
        moved = place.rename(place.with_name(f"moved{place.suffix}"))
        with pytest.raises(FuncrobustError, match="wherever it lies by now, say it again"):
            cure_train.run(CureTrain(resume=cut.path), reporter)
        file = moved if kind == "file" else next(moved.rglob("*.png"))
        before = file.read_bytes()
        file.write_bytes(before + b"\0")
        again = CureTrain(resume=cut.path, dataset=str(moved))
        with pytest.raises(FuncrobustError, match="began from another --dataset: the SHA-256"):
            cure_train.run(again, reporter)
        assert RunFolder.open(cut.path).config["dataset"] == str(place)
        file.write_bytes(before)
        assert cure_train.run(again, reporter).status == "finished"
    assert RunFolder.open(cut.path).config["dataset"] == str(moved)


def test_published_data_need_no_digest(given):
    inputs = run(given, epochs=1).run.inputs
    assert inputs == {"checkpoint": checkpoints.load(given["checkpoint"])[1].sha256}


def test_psi_train_is_not_resumed_from_another_file(given, tmp_path, monkeypatch):
    """Its anchor keeps the predictions of the network before."""
    options = PsiTrain.filled({
        "checkpoint": given["checkpoint"], "out": tmp_path, "name": "psi", "updates": 4,
        "batch_size": 16, "strips": 0, "heldout_examples": 20, "evaluate_examples": 20,
        "evaluate_steps": 2, "precision": "fp32",
    })  # fmt: skip
    interrupt(monkeypatch, psi_assemble.Batches, 2)
    with Reporter.silent() as reporter:
        cut = psi_train.run(options, reporter)
        monkeypatch.undo()
        saved(given["checkpoint"], seed=8)
        with pytest.raises(FuncrobustError, match="began from another --checkpoint"):
            psi_train.run(PsiTrain(resume=cut.run.path, checkpoint=given["checkpoint"]), reporter)


def test_a_card_names_the_network_also_where_it_is_the_presets(tmp_path):
    """Left out beside --checkpoint, it would be the checkpoint's."""
    own = saved(tmp_path / "smooth", model="preact-tiny-silu")
    options = CureTrain.filled({"checkpoint": str(own), "model": CureTrain.model})
    assert f"--model {CureTrain.model} " in as_command(options)


def test_a_file_that_does_not_say_its_network_is_not_guessed_at(given, tmp_path):
    """ReLU and SiLU have the same tensors."""
    foreign = tmp_path / "theirs.pt"
    torch.save(load_file(given["checkpoint"]), foreign)
    with pytest.raises(FuncrobustError, match=r"does not say which network it is: .* --model"):
        CureTrain.filled({"checkpoint": str(foreign)})
    CureTrain.filled({"checkpoint": str(foreign), "model": "preact-tiny"})


def test_beside_resume_a_checkpoint_says_no_network(given, tmp_path):
    own = saved(tmp_path / "smooth", model="preact-tiny-silu")
    again = CureTrain.filled({"resume": tmp_path, "checkpoint": str(own)})
    assert again.model == CureTrain.model


def test_mirror_images_of_what_may_not_be_mirrored_are_refused(given):
    with pytest.raises(FuncrobustError, match=r"looks at mirror images.*: take preact-tiny$"):
        run(given, model="preact-tiny-flip")


@pytest.mark.parametrize("padding", [8, 3_000_000_000])
def test_padding_that_leaves_nothing_is_refused_before_a_folder_is_made(padding):
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    dataset = data.Dataset("dots", x, torch.arange(4), x, torch.arange(4), tuple("0123"), "a test")
    with pytest.raises(FuncrobustError, match="could shift an image out of its 8 pixels"):
        assemble.require_fitting(CureTrain.filled({"preset": "cpu", "padding": padding}), dataset)
    assemble.require_fitting(CureTrain.filled({"preset": "cpu", "padding": 7}), dataset)


def test_what_else_lies_in_a_folder_of_images_is_not_the_data(tmp_path):
    place = own_data(tmp_path / "mine", "folder")
    before = data_contents(str(place))
    (place / "runs").mkdir()
    (place / "runs" / "config.json").write_text("{}")
    (place / "README.md").write_text("mine")
    (place / "train" / "odd.png").symlink_to("nowhere")
    assert data_contents(str(place)) == before
    linked = tmp_path / "linked"
    linked.mkdir()
    for half in ("train", "test"):
        (linked / half).symlink_to(place / half)
    assert data_contents(str(linked)) == before
    next((place / "test").rglob("*.png")).unlink()
    assert data_contents(str(linked)) != before


def test_padding_that_does_nothing_is_refused(given):
    with pytest.raises(FuncrobustError, match="--padding 2 does nothing: the images of digits"):
        run(given, padding=2)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_images_are_shifted_by_the_padding_at_most(padding):
    x = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 4, 4] = 255
    y = torch.arange(64) % 10
    classes = tuple("0123456789")
    dataset = data.Dataset("dots", x, y, x, y, class_names=classes, source="a test")
    options = CureTrain.filled({"dataset": "digits", "padding": padding, "batch_size": 64})
    found = assemble.assemble(options, dataset).batches(0).x
    rows, columns = (found[:, 0] > 0).nonzero()[:, 1:].T
    assert rows.min() == 4 - padding
    assert rows.max() == min(4 + padding, 7)
    assert columns.min() == max(3 - padding, 0)  # mirrored, column 4 is column 3
    assert columns.max() == min(4 + padding, 7)
