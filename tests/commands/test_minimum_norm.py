"""The command minimum-norm, on a classifier of the digits."""

from __future__ import annotations

import json
import sys

import pytest

import funcrobust as fr
from funcrobust.commands import minimum_norm
from funcrobust.commands.minimum_norm import MinimumNorm
from funcrobust.report.console import Reporter
from funcrobust.report.records import as_json, shortest

pytest.importorskip("foolbox")

BOTH = ("fmn-linf", "deepfool-linf")


def figures(digits_run, **options):
    given = {"checkpoint": str(digits_run[0]), "examples": 30, "attacks": BOTH, "steps": 30}
    with Reporter.silent() as reporter:
        return minimum_norm.run(MinimumNorm(**{**given, **options}), reporter)


@pytest.fixture(scope="module")
def found(digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minimum-norm")
    result = figures(digits_run, png=folder / "c.png", json_file=folder / "c.json")
    return result, folder


def test_figures_are_those_of_the_images(found):
    result, folder = found
    assert json.loads((folder / "c.json").read_text()) == json.loads(as_json(shortest(result)))
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")
    images = result["images"]
    assert len(images["places"]) == 30
    assert images["places"] != list(range(30))
    infinite = {name: [v if v is not None else float("inf") for v in images[name]] for name in BOTH}
    for it in result["attacks"]:
        norms = infinite[it["attack"]]
        assert it["right"] == sum(v > 0 for v in norms)
        assert it["found"] == sum(0 < v < float("inf") for v in norms) > 0
        assert it["clean"]["accuracy"] == it["right"] / 30
        epsilon = result["epsilon"]["linf"]
        assert [at["radius"] for at in it["at"]] == [epsilon / 2, epsilon, 2 * epsilon]
        for at in it["at"]:
            assert at["accuracy"] == sum(v > at["radius"] for v in norms) / 30
            assert at["low"] <= at["accuracy"] <= at["high"]
    (both,) = result["smallest"]
    smaller = [min(pair) for pair in zip(*infinite.values(), strict=True)]
    assert both["found"] == sum(0 < v < float("inf") for v in smaller)
    assert both["at"][1]["accuracy"] == sum(v > result["epsilon"]["linf"] for v in smaller) / 30


def test_the_same_again_and_the_usual_attack(found, digits_run):
    result, _ = found
    again = figures(digits_run, attacks=())
    assert [it["attack"] for it in again["attacks"]] == ["fmn-linf"]
    assert again["images"]["fmn-linf"] == result["images"]["fmn-linf"]
    assert figures(digits_run, attacks=(), seed=1)["images"] != again["images"]


def test_several_norms_each_with_its_own_table(digits_run, capsys):
    with Reporter() as reporter:
        options = MinimumNorm(
            checkpoint=str(digits_run[0]), examples=10, attacks=("fmn-linf", "sigma-zero"), steps=5
        )
        result = minimum_norm.run(options, reporter)
    said = capsys.readouterr().out
    assert "10 random test images of 397, linf, ε = " in said
    assert "10 random test images of 397, l0\n" in said
    assert "at most 10 passes" in said
    l0 = result["attacks"][1]
    assert l0["at"] == []
    missed = l0["right"] - l0["found"]
    assert (f"sigma-zero did not fool the network on {missed} images" in said) == (missed > 0)
    assert all(v is None or v == int(v) for v in result["images"]["sigma-zero"])


def test_all_images_are_not_called_random_ones(digits_run, capsys):
    options = MinimumNorm(
        checkpoint=str(digits_run[0]), examples=5000, attacks=("deepfool-l2",), steps=1
    )
    with Reporter() as reporter:
        minimum_norm.run(options, reporter)
    assert "on digits, all 397 test images, l2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attacks": ("ddn", "ddn")}, "--attack ddn is there twice: say it once"),
        ({"attacks": ("ddn", "fmn-l0"), "epsilon": 0.1}, "--epsilon is for one norm"),
        ({"attacks": ("fmn-mirror",)}, "fmn-linf"),
        ({"steps": 0}, "--steps must be"),
    ],
)
def test_bad_input(options, said):
    with pytest.raises(fr.FuncrobustError) as error:
        MinimumNorm(**options)
    assert said in str(error.value)


def test_a_picture_of_two_norms_is_refused(tmp_path):
    with pytest.raises(fr.FuncrobustError, match=r"--png is for one norm.* l0 and l2"):
        MinimumNorm(attacks=("ddn", "fmn-l0"), png=tmp_path / "c.png")


def test_without_foolbox_one_line_says_what_to_install(digits_run, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "foolbox"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(fr.FuncrobustError, match=r'pip install "funcrobust\[minimum-norm\]"'):
        figures(digits_run)
