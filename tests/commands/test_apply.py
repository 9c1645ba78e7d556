"""The applications of ψ: what each promises, on images and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from problems import directional_difference, inner, random_direction, run_cli
from torch import nn

import funcrobust as fr
from funcrobust.commands.apply import pictures
from funcrobust.commands.apply import run as recipe
from funcrobust.core import applications as apps
from funcrobust.core.applications import Walk
from funcrobust.report.console import Reporter

WALK = Walk(2.0, 0.1, 4)


def test_presets_by_size():
    assert apps.walk_for("inpainting", (3, 224, 224)) == Walk(21.6, 0.1, 720)
    assert apps.walk_for("generation", (3, 32, 32)).radius == 30.0
    assert apps.walk_for("generation", (1, 8, 8)).radius < 10.0
    with pytest.raises(fr.FuncrobustError, match="sketch"):
        apps.walk_for("etching", (3, 32, 32))
    assert len({frozenset(walks) for walks in apps.WALKS.values()}) == 1


def test_generation_goes_toward_its_class(problem):
    y = (problem.y + 1) % 5
    made = apps.generation(problem.loss, WALK)(problem.params, problem.x, y)
    before, after = (problem.loss(problem.params, x, y) for x in (problem.x, made))
    assert (after < before).all()


def test_inpainting_keeps_what_is_known(problem):
    hole = recipe.centred_square(problem.x, 0.5)
    assert int(hole.sum()) == 16
    filled = apps.mean_filled(problem.x, hole)
    known = problem.x[..., ~hole]
    assert torch.equal(filled[..., ~hole], known)
    assert torch.allclose(filled[0, :, 4, 4], known[0].mean(-1))
    made = apps.inpainting(problem.loss, hole, WALK)(problem.params, filled, problem.y)
    assert torch.equal(made[..., ~hole], known)
    assert (made - filled)[..., hole].abs().max() > 0.05


def test_super_resolution_agrees_with_its_input(problem):
    low = F.avg_pool2d(problem.x, 4)
    start = apps.bicubic(low, 4)
    assert (F.avg_pool2d(start, 4) - low).abs().max() > 1e-4
    made = apps.super_resolution(problem.loss, low, 4, WALK)(problem.params, start, problem.y)
    assert (F.avg_pool2d(made, 4) - low).abs().max() <= 1e-10


def test_painting_leaks_nothing_and_raises_its_feature(problem):
    where = recipe.centred_square(problem.x, 0.5)
    features = fr.functionalize(nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.SiLU()).double())
    y = torch.tensor([0, 3, 6, 2])
    made = apps.painting(features.predict, where, WALK)(features.params, problem.x, y)
    assert torch.equal(made[..., ~where], problem.x[..., ~where])
    before, after = (features.predict(features.params, x) for x in (problem.x, made))
    rows = torch.arange(4)
    assert (after[rows, y] > before[rows, y]).all()


def test_applications_are_differentiable(problem):
    """Each is a ψ: a number of what it drew has an exact slope in θ."""
    hole = recipe.centred_square(problem.x, 0.5)

    def total(params):
        made = apps.inpainting(problem.loss, hole, WALK)(params, problem.x, problem.y)
        return (made * problem.x.flip(0)).sum()

    direction = random_direction(problem.params)
    exact = inner(torch.func.grad(total)(problem.params), direction)
    numeric = directional_difference(total, problem.params, direction)
    assert abs(exact) > 1e-3
    assert abs(exact - numeric) <= 1e-6 * abs(exact)


def test_flattened_has_few_colours(problem):
    flat = pictures.flattened(problem.x, colours=3, blocks=4)
    assert flat.shape == problem.x.shape
    for image in flat:
        assert len(image.flatten(1).T.unique(dim=0)) <= 3


def figures(digits_run, folder, task, **options):
    run = str(digits_run[0])
    given = recipe.ApplyOptions(
        checkpoint=run, judge=run, examples=20, png=folder / "drawn.png", **options
    )
    with Reporter.silent() as reporter:
        found = recipe.apply(task, given, reporter)
    assert (folder / "drawn.png").stat().st_size > 2000
    return found


@pytest.mark.parametrize("task", recipe.TASKS)
def test_every_task_on_the_digits(digits_run, tmp_path, task):
    found = figures(digits_run, tmp_path, task, scale=2)
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
    if task == "inpainting":
        assert ours["PSNR in the hole"] > 5


def test_an_image_of_ones_own(digits_run, tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    found = figures(digits_run, tmp_path, "sketch", image=(path,), to="3")
    assert found["ψ"]["judge agrees"] == 1.0


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
        ("etching", {}, "generation, inpainting"),
        ("sketch", {"image": (Path("nowhere.png"),)}, "nowhere.png"),
        ("sketch", {"image": (Path(__file__),)}, "not an image"),
        ("inpainting", {"hole": 2.0}, "hole"),
        ("super-resolution", {"scale": 3}, "scale 3"),
        ("super-resolution", {"scale": 0}, "scale"),
        ("generation", {"image": (Path(__file__),)}, "leave --image out"),
        ("painting", {"feature": 999}, "below"),
        ("sketch", {"png": Path("a.jpg")}, ".png"),
        ("sketch", {"judge": "nobody"}, "nobody"),
        ("sketch", {"judge": "cifar10-standard-small"}, "other images"),
        ("sketch", {"steps": -1}, "steps"),
    ],
)
def test_bad_input(digits_run, tmp_path, monkeypatch, task, changes, word):
    monkeypatch.chdir(tmp_path)
    options = recipe.ApplyOptions(checkpoint=str(digits_run[0]), examples=4, **changes)
    with Reporter.silent() as reporter, pytest.raises(fr.FuncrobustError, match=word):
        recipe.apply(task, options, reporter)
    assert not list(tmp_path.iterdir())


def test_the_whole_image_is_never_a_hole(digits_run, tmp_path):
    figures(digits_run, tmp_path, "painting", hole=0.99)
    assert int(recipe.centred_square(torch.zeros(1, 1, 8, 8), 0.99).sum()) == 49


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
