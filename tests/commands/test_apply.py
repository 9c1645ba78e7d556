"""``apply`` on the digits: every task, its figures, its picture, and what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from problems import run_cli

import funcrobust as fr
from funcrobust import checkpoints
from funcrobust.commands import apply
from funcrobust.commands.apply import pictures
from funcrobust.core import applications
from funcrobust.core.tasks import centred_square
from funcrobust.files import WriteError
from funcrobust.report.console import Reporter


def figures(digits_run, folder, task, *others, **options):
    run = str(digits_run[0])
    wanted = {} if "image" in options else {"examples": 20}
    judge = None if task == "painting" else run  # of the digits' features there is none to ask
    given = apply.Apply(
        task=task, checkpoints=(run, *others), judge=judge, png=folder / "drawn.png", **wanted,
        **options,
    )  # fmt: skip
    with Reporter.silent() as reporter:
        found = apply.run(given, reporter)
    assert (folder / "drawn.png").stat().st_size > 2000
    return found


@pytest.fixture(scope="module")
def restoring(digits_run, tmp_path_factory):
    """The same network with a card that says it restores: what is tested is how it is drawn with.

    It was not trained to, so nothing is said of what it draws.
    """
    network, card = checkpoints.load(str(digits_run[0]))
    path = tmp_path_factory.mktemp("restoring") / "restoring.safetensors"
    checkpoints.save(path, network.state_dict(), replace(card, restoring_step=0.2))
    return str(path)


def options_for(task):
    if task == "denoising":
        pytest.importorskip("skimage")
    return {"scale": 2} if task == "super-resolution" else {}


@pytest.mark.parametrize("task", applications.names())
def test_every_task_before_and_after(digits_run, restoring, tmp_path, task):
    """Two networks begin from the same images: a row of figures each, beside the same baselines."""
    one_aim = {"feature": 1} if task == "painting" else {}
    found = figures(digits_run, tmp_path, task, restoring, **options_for(task), **one_aim)
    *baselines, before, after = found
    assert (before, after) == ("ψ, cure", "ψ, restoring")
    assert baselines
    if task == "painting":
        assert found[before]["change outside"] == found[after]["change outside"] == 0


@pytest.mark.parametrize("task", applications.names())
def test_every_task_on_the_digits(digits_run, tmp_path, task):
    found = figures(digits_run, tmp_path, task, **options_for(task))
    baseline, *_, ours = found.values()
    if task in ("generation", "translation", "sketch"):
        assert ours["judge agrees"] >= max(0.8, baseline["judge agrees"])
    if task == "translation":
        assert baseline["judge agrees"] <= 0.2
    if task == "painting":
        name = next(k for k in ours if k.startswith("feature"))
        assert ours["change outside"] == 0
        assert ours[name] > baseline[name]
    if task == "super-resolution":
        assert found["bicubic, consistent"]["PSNR"] > baseline["PSNR"]
        assert ours["PSNR"] > baseline["PSNR"]
    if task == "inpainting":
        assert ours["PSNR in the hole"] > baseline["PSNR in the hole"]
    if task == "denoising":
        assert found["non-local means"]["PSNR"] > baseline["PSNR"] + 1
        assert ours["PSNR"] > baseline["PSNR"] + 0.5


def test_how_a_network_that_restores_draws(restoring, tmp_path):
    """By its own steps, unless what belongs to others is asked for."""
    common = ("--examples", "4", "--judge", "none", "--png", "drawn.png")
    said = {
        words: run_cli("apply", *words.split(), restoring, *common, cwd=tmp_path)
        for words in (
            "sketch", "sketch --steps 3 --remain 0.5", "sketch --step-size 0.1",
            "sketch --radius 1", "painting --feature 1",
        )
    }  # fmt: skip
    assert all(done.returncode == 0 for done in said.values())
    draws = {words: " ".join(done.stdout.split()) for words, done in said.items()}
    assert "restoring steps of 0.2 times the logit's slope" in draws["sketch"]
    assert "3 restoring steps" in draws["sketch --steps 3 --remain 0.5"]
    assert "0.5 of the way left" in draws["sketch --steps 3 --remain 0.5"]
    assert "L2 steps of 0.1" in draws["sketch --step-size 0.1"]
    assert "radius 1" in draws["sketch --radius 1"]
    assert "L2 steps" in draws["painting --feature 1"]


def test_a_class_and_a_feature_are_not_painted_side_by_side(digits_run, restoring, tmp_path):
    both = (str(digits_run[0]), restoring)
    options = apply.Apply(
        task="painting", checkpoints=both, examples=10, judge="none", png=tmp_path / "a.png"
    )
    with Reporter.silent() as reporter:
        with pytest.raises(fr.FuncrobustError, match="a class and a feature"):
            apply.run(options, reporter)
        assert not list(tmp_path.iterdir())
        apply.run(replace(options, feature=1), reporter)


def test_what_is_noisy_already_is_not_made_noisier(digits_run, tmp_path):
    path = tmp_path / "mine.png"
    Image.new("L", (8, 8), 90).save(path)
    found = figures(digits_run, tmp_path, "denoising", image=(path,))
    assert list(found) == ["noisy", "ψ"]


def test_a_new_application_is_one_file(digits_run, tmp_path, monkeypatch):
    """Removing noise of a ``scale``: found by its file, given the option that it names."""
    (tmp_path / "toy_cleaning.py").write_text(
        "import torch\n"
        "from funcrobust.core.applications.generation import TASK as GENERATION, generation\n"
        "from funcrobust.core.tasks import Plan, Task\n"
        "def plan(scene, *, scale):\n"
        "    noisy = (scene.x + scale * 0.1 * torch.ones_like(scene.x)).clamp(0, 1)\n"
        "    return Plan(psi=lambda _: generation(scene.loss, scene.walk),\n"
        "        params=scene.model.params, start=noisy, y=scene.y, baselines={'noisy': noisy},\n"
        "        wanted=scene.y, score=lambda x: {'off by': float((x - scene.x).abs().max())},\n"
        "        titles=scene.y, above={'noisy': noisy}, caption='')\n"
        "TASK = Task(GENERATION.walks, plan)\n"
    )
    monkeypatch.setattr(applications, "__path__", [*applications.__path__, str(tmp_path)])
    assert "toy-cleaning" in applications.names()
    found = figures(digits_run, tmp_path, "toy-cleaning", scale=3)
    assert list(found) == ["noisy", "ψ"]
    assert found["noisy"]["off by"] == pytest.approx(0.3)
    assert found["ψ"]["judge agrees"] >= found["noisy"]["judge agrees"]


def test_an_image_of_ones_own(digits_run, tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    found = figures(digits_run, tmp_path, "sketch", image=(path,), to="3")
    assert found["ψ"]["judge agrees"] == 1.0


def said(digits_run, folder, task, *paths, **options):
    given = apply.Apply(
        task=task, checkpoints=(str(digits_run[0]),), judge="none", image=paths, steps=1,
        png=folder / "drawn.png", **options,
    )  # fmt: skip
    lines = []
    with Reporter.silent() as reporter:
        reporter.say = lines.append
        apply.run(given, reporter)
    return lines


def test_what_is_seen_in_ones_own_image_and_where_it_goes(digits_run, tmp_path):
    paths = tuple(tmp_path / f"{name}.png" for name in "ab")
    for path, shade in zip(paths, (40, 200), strict=True):
        Image.new("L", (8, 8), shade).save(path)
    network, card = checkpoints.load(digits_run[0])
    with torch.no_grad():
        logits = network(pictures.read_images(paths, (1, 8, 8)))
    shares, classes = logits.softmax(-1).max(-1)
    for to, after in ((None, "--to CLASS names another"), ("3", "as asked")):
        lines = said(digits_run, tmp_path, "sketch", *paths, to=to)
        for path, share, seen in zip(paths, shares, classes, strict=True):
            name = card.class_names[seen]
            toward = to or name
            assert (
                f"{path}: the classifier sees {name} ({share:.0%}); ψ goes toward {toward}, {after}"
                in lines
            )
    following = card.class_names[(int(classes[0]) + 1) % 10]
    assert any(
        f"ψ goes toward {following}," in line
        for line in said(digits_run, tmp_path, "translation", paths[0])
    )
    assert not any("goes toward" in s for s in said(digits_run, tmp_path, "painting", *paths))


@pytest.mark.parametrize("command", ["generate", "apply sketch"])
def test_a_picture_is_not_replaced_unless_it_is_named(digits_run, tmp_path, command):
    usual = {"generate": "generated.png", "apply sketch": "sketch.png"}[command]
    more = ("--judge", "none", "--examples", "10") if "apply" in command else ()
    words = (*command.split(), str(digits_run[0]), "--steps", "1", *more)
    mine = tmp_path / usual
    mine.write_text("mine")
    refused = run_cli(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"{usual} is there already: --png {usual} replaces it" in refused.stderr
    assert mine.read_text() == "mine"
    named = run_cli(*words, "--png", usual, cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert f"{usual} is there already, and will be replaced" in named.stdout
    assert mine.read_bytes().startswith(b"\x89PNG")


def test_where_nobody_named_a_picture_and_none_can_be_written(digits_run, tmp_path, monkeypatch):
    """Asked before any work, also of a name that is nobody's."""
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    for words in (("generate",), ("apply", "sketch")):
        refused = run_cli(*words, str(digits_run[0]), cwd=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: cannot write ")
        assert str(tmp_path) in refused.stderr


def test_figures_are_there_though_the_picture_cannot_be_written(digits_run, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise WriteError(f"cannot write {path}: no space left")

    monkeypatch.setattr(pictures, "by_class", lambda _, png, *__: full(png))
    (tmp_path / "found.json").write_text("old")
    done = run_cli(
        "apply", "sketch", str(digits_run[0]), "--examples", "10", "--steps", "1", "--judge",
        str(digits_run[0]), "--json", "found.json", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: cannot write sketch.png: no space left\n")
    share = json.loads((tmp_path / "found.json").read_text())["ψ"]["judge agrees"]
    assert f"{share:.0%}" in done.stdout
    assert "found.json is there already, and will be replaced" in done.stdout


def test_from_the_command_line(digits_run, tmp_path):
    json_file = tmp_path / "figures.json"
    result = run_cli(
        "apply", "translation", str(digits_run[0]), "--examples", "10", "--to", "7", "--judge",
        str(digits_run[0]), "--json", str(json_file), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "translation.png").exists()
    share = json.loads(json_file.read_text())["ψ"]["judge agrees"]
    assert f"{share:.0%}" in result.stdout
    refused = run_cli("apply", "sketch", str(digits_run[0]), "--to", "horse", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: unknown class 'horse'")


@pytest.mark.parametrize(
    ("task", "changes", "word"),
    [
        ("sketch", {"image": (Path("nowhere.png"),)}, "nowhere.png"),
        ("sketch", {"image": (Path(__file__),)}, "not an image"),
        ("super-resolution", {"scale": 3}, "scale 3"),
        ("generation", {"image": (Path(__file__),)}, "leave --image out"),
        ("painting", {"feature": 999}, "below"),
        ("painting", {"judge": "HERE"}, "--judge does nothing here: a feature is painted"),
        ("sketch", {"judge": "nobody"}, "nobody"),
        ("sketch", {"judge": "cifar10-standard-small"}, "other images"),
        ("translation", {"judge": "inception"}, "does not know the data's own classes"),
        ("generation", {"judge": "inception:nowhere.pth"}, "cannot read nowhere.pth"),
        ("sketch", {"remain": 0.1}, "--remain does nothing here: it needs a checkpoint"),
        ("sketch", {"guidance": 0.1}, "--guidance does nothing here: it needs a checkpoint"),
    ],
)
def test_what_does_not_fit_the_classifier_or_the_task(
    digits_run, tmp_path, monkeypatch, task, changes, word
):
    monkeypatch.chdir(tmp_path)
    run = str(digits_run[0])
    changes = {name: run if value == "HERE" else value for name, value in changes.items()}
    options = apply.Apply(task=task, checkpoints=(run,), **changes)
    with Reporter.silent() as reporter, pytest.raises(fr.FuncrobustError, match=word):
        apply.run(options, reporter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "changes", "word"),
    [
        ("etching", {}, "generation, inpainting"), ("inpainting", {"hole": 2.0}, "--hole must be"),
        ("super-resolution", {"scale": 0}, "--scale must be"), ("sketch", {"steps": -1}, "--steps"),
        ("sketch", {"png": Path("a.jpg")}, ".png"), ("sketch", {"radius": -1.0}, "--radius"),
        ("sketch", {"hole": 0.3}, "--hole does nothing here: it goes with TASK inpainting"),
        ("painting", {"scale": 2}, "--scale does nothing here"),
        ("sketch", {"image": (Path("a"),), "examples": 3}, "--examples does nothing here"),
        ("sketch", {"judge": "timm:"}, "lacks a part: timm:NAME"),
        ("denoising", {"image": (Path("a"),), "noise": 30.0}, "--noise does nothing here"),
        ("sketch", {"noise": 30.0}, "--noise does nothing here: it goes with TASK denoising"),
        ("sketch", {"remain": 0.1, "radius": 1.0}, "--remain does nothing here"),
        ("sketch", {"guidance": 0.1, "radius": 1.0}, "--guidance does nothing here"),
        ("painting", {"feature": 0, "to": "5"}, "--to does nothing here: --feature"),
        ("painting", {"remain": 0.1, "feature": 1}, "a step size, radius or feature"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(task, changes, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        apply.Apply(task=task, **changes)


def test_what_few_images_say_comes_with_a_warning(digits_run, tmp_path):
    run = str(digits_run[0])
    said = run_cli("apply", "generation", run, "--examples", "20", "--judge", run, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    (warning,) = [line for line in said.stdout.splitlines() if line.startswith("warning")]
    assert warning == (
        "warning: Fréchet distance of 20 images: biased upwards, the Inception score downwards; "
        "compare at equal N only"
    )
    assert "Inception score" in said.stdout
    said = run_cli("apply", "translation", run, "--examples", "20", "--judge", run, cwd=tmp_path)
    assert "warning" not in said.stdout, "no Fréchet distance"


def test_features_of_timm_alone(digits_run, tmp_path):
    """No opinion on the classes, so no agreement; no classes at all, so no Inception score."""
    timm = pytest.importorskip("timm")
    weights = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    options = apply.Apply(
        task="generation", checkpoints=(str(digits_run[0]),), judge=f"timm:test_vit={weights}",
        examples=20, png=tmp_path / "drawn.png",
    )  # fmt: skip
    with Reporter.silent() as reporter:
        found = apply.run(options, reporter)
    assert [list(scores) for scores in found.values()] == [["Fréchet distance"]] * 2
    assert all(scores["Fréchet distance"] > 0 for scores in found.values())


def test_the_whole_image_is_never_a_hole(digits_run, tmp_path):
    figures(digits_run, tmp_path, "painting", hole=0.99)
    assert int(centred_square(torch.zeros(1, 1, 8, 8), 0.99).sum()) == 49


def test_inpainting_toward_a_class_asked_for(digits_run, tmp_path):
    first, second = (figures(digits_run, tmp_path, "inpainting", to=c) for c in ("1", "8"))
    # What the judge agrees with is the class asked for: that may differ for the same image.
    name = "PSNR in the hole"
    assert first["mean fill"][name] == second["mean fill"][name]
    assert first["ψ"][name] != second["ψ"][name]


def test_what_is_transparent_is_paper(tmp_path):
    path = tmp_path / "drawing.png"
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (0, 0, 4, 8))
    drawing.save(path)
    (image,) = pictures.read_images((path,), (3, 8, 8))
    assert image[:, 4, 7].tolist() == [1.0, 1.0, 1.0]
    assert image[:, 4, 0].tolist() == [1.0, 0.0, 0.0]
    deep = tmp_path / "deep.png"
    Image.new("I;16", (8, 8), 9000).save(deep)
    with pytest.raises(fr.FuncrobustError, match="8 bits"):
        pictures.read_images((deep,), (1, 8, 8))
