"""The page that ``evaluate`` leaves says what its figures say, and lies where it should."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pages import CHROMIUM, Seen, require_self_contained, require_shown_well
from PIL import Image
from problems import parsed, run_cli
from safetensors.torch import load_file
from scipy.stats import beta

from funcrobust import checkpoints
from funcrobust.commands.evaluate import Evaluate, page
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation.curves import COUNTS, MULTIPLES
from funcrobust.report import page as report

QUICK = ("--examples", "80", "--steps", "5", "--restarts", "1")
LITTLE = ("--examples", "12", "--steps", "1", "--restarts", "1", "--no-checks")
HOSTILE = "<script>\"'\n\x1b[1m&"


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A run folder of its own, whose card has names that are not to be trusted."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(digits_run[0], folder)
    module, card = checkpoints.load(folder)
    names = tuple(f"{HOSTILE}{n}" for n in range(9))  # and one class without a name
    checkpoints.save(
        folder / "checkpoint.safetensors", module.state_dict(), replace(card, class_names=names)
    )
    return folder


@pytest.fixture(scope="module")
def made(run):
    """An evaluation with all there is: what it printed, its figures, its page, what it saved."""
    (run / "evaluation.html").unlink(missing_ok=True)  # another test's
    done = run_cli(
        "evaluate", str(run), *QUICK, "--json", str(run / "found.json"), "--seed", "3",
        "--save", str(run / "kept.safetensors"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (
        done.stdout, json.loads((run / "found.json").read_text()),
        (run / "evaluation.html").read_text(encoding="utf-8"), load_file(run / "kept.safetensors"),
    )  # fmt: skip


def written(value):
    return f"{100 * value:.1f} %"


def test_the_page_lies_in_the_run_folder_and_the_last_line_names_it(run, made):
    assert made[0].splitlines()[-1] == f"page: {run / 'evaluation.html'}"
    require_self_contained(made[2])


def test_it_says_what_the_figures_say_in_the_order_of_weight(run, made):
    _, figures, text, _ = made
    seen = Seen(text)
    said = seen.text
    parts = [
        figures["verdict"], "not tried: AutoAttack (--autoattack)", written(figures["clean"]),
        figures["after"][0]["attack"], written(figures["robust"]), "digits: 80 random",
        "test images of 397, by seed 3", figures["normalisation"], "float32",
        f"torch {torch.__version__}", *(check["name"] for check in figures["checks"]),
        "Accuracy over the radius", "Accuracy over steps", "Images lost", "Images lost last",
        "To repeat it",
    ]  # fmt: skip
    at = -1
    for part in parts:
        at = said.find(part, at + 1)
        assert at >= 0, f"{part} is not there, or not in its place"
    states = {True: "✓ pass", False: "✗ FAIL", None: "– not tried"}
    for check in figures["checks"]:
        row = f"{check['name']}{states[check['passed']]}{check['figure']}"
        assert row in "".join(seen.texts)


def test_hostile_class_names_are_text(made):
    spelled = HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b")
    alts = [image["alt"] for image in Seen(made[2]).all("img")]
    assert any(spelled in alt for alt in alts)
    assert "<script" not in made[2]
    assert "\x1b" not in made[2]


def exact(k, n):
    """Clopper and Pearson's interval by the quantiles of the beta distribution."""
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return [low, high]


def test_the_curves_are_in_the_figures_and_agree_with_them(made):
    _, figures, text, _ = made
    curves = figures["curves"]
    assert curves["examples"] == 64
    radius, steps = curves["radius"], curves["steps"]
    assert [p["radius"] for p in radius] == pytest.approx(
        [m * figures["epsilon"] for m in MULTIPLES]
    )
    assert [p["steps"] for p in steps] == list(COUNTS)
    for curve in (radius, steps):
        standing = [point["correct"] for point in curve]
        assert standing == sorted(standing, reverse=True)
        for point in curve:
            assert point["accuracy"] == point["correct"] / 64
            assert point["interval"] == pytest.approx(exact(point["correct"], 64))
    assert radius[0]["correct"] >= steps[0]["correct"]
    assert radius[0]["correct"] > radius[-1]["correct"]
    labels = [svg["aria-label"] for svg in Seen(text).all("svg")]
    assert f"at 50 {written(steps[-1]['accuracy'])}" in labels[-1]


def test_the_images_on_it_are_those_that_fooled(made):
    _, _, text, kept = made
    images = [image for image in Seen(text).all("img") if "seen as" in image["alt"]]
    found = {(pixels * 255).round().byte().numpy().tobytes() for pixels in kept["images"]}
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
        for image in images
    ]
    assert {one.tobytes() for one in shown} <= found
    assert len({one.tobytes() for one in shown}) == len(shown) == min(
        len(found), page.SHOWN + min(page.LAST, max(1, len(found) // 3))
    )  # fmt: skip


def test_those_lost_last_are_the_last_attacks_then_the_slowest():
    curves = page.Curves(torch.tensor([1, 2, 3, 5]), torch.tensor([4, -1, 30, 9]), [], [])
    fell_to = torch.tensor([2, 1, 1, 1, 0, 2, -1])
    lost = (fell_to > 0).nonzero().squeeze(1)
    assert page._hardest_first(lost, fell_to, curves).tolist() == [5, 0, 2, 3, 1]


def test_the_command_on_it_says_the_same(run, made):
    seen = Seen(made[2])
    words = shlex.split(seen.texts[seen.texts.index("To repeat it") + 2])
    assert words[:2] == ["python", "cli.py"]
    again = parsed(*words[2:])
    asked = Evaluate(
        checkpoint=str(run), examples=80, steps=5, restarts=1, seed=3, json_file=run / "found.json"
    )
    assert again == asked


def test_elsewhere_nowhere_and_without_a_word(run, tmp_path):
    """--page FILE, --no-page, and --json - which is for a program."""
    (run / "evaluation.html").unlink(missing_ok=True)
    quick = ("evaluate", str(run), *LITTLE)
    none = run_cli(*quick, "--no-page", cwd=tmp_path)
    assert (none.returncode, "page" in none.stdout) == (0, False), none.stderr
    piped = run_cli(*quick, "--json", "-", cwd=tmp_path)
    assert json.loads(piped.stdout)["curves"]["examples"] == 12
    assert list(tmp_path.iterdir()) == []
    assert not (run / "evaluation.html").exists()
    both = run_cli(*quick, "--json", "-", "--page", "a/b.html", cwd=tmp_path)
    assert json.loads(both.stdout)["verdict"] is None
    seen = require_self_contained((tmp_path / "a" / "b.html").read_text(encoding="utf-8"))
    assert "no verdict" in seen.text
    assert "None were tried." in seen.text


def test_a_file_that_is_no_runs_leaves_it_here(run, tmp_path):
    shutil.copy(run / "checkpoint.safetensors", tmp_path / "some.safetensors")
    done = run_cli("evaluate", "some", *LITTLE, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "page: evaluation.html"
    assert (tmp_path / "evaluation.html").is_file()
    (next_one,) = (line for line in done.stdout.splitlines() if "--autoattack" in line)
    assert "--page" not in next_one


def test_what_somebody_else_left_here_is_not_replaced(run, tmp_path):
    """The page takes another name; named, it is replaced, and the JSON too, with a word."""
    shutil.copy(run / "checkpoint.safetensors", tmp_path / "some.safetensors")
    mine = tmp_path / "evaluation.html"
    mine.write_text("mine")
    quick = ("evaluate", "some", *LITTLE)
    for number in (2, 3):
        beside = run_cli(*quick, cwd=tmp_path)
        assert beside.stdout.splitlines()[-1] == f"page: evaluation-{number}.html"
        assert (tmp_path / f"evaluation-{number}.html").stat().st_size > 1000
    assert mine.read_text() == "mine"
    (tmp_path / "found.json").write_text("old")
    named = run_cli(*quick, "--page", "evaluation.html", "--json", "found.json", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert named.stdout.splitlines()[-1] == "page: evaluation.html, in place of the one before"
    assert "found.json is there already, and will be replaced" in named.stdout
    assert json.loads((tmp_path / "found.json").read_text())["examples"]
    mine.write_text("mine")
    none = run_cli(*quick, "--no-page", cwd=tmp_path)
    assert (none.returncode, mine.read_text()) == (0, "mine")


def test_a_place_that_cannot_be_written(run, tmp_path, monkeypatch):
    """Said by nobody: a warning, for the figures are there. Said: an error."""
    shutil.copy(run / "checkpoint.safetensors", tmp_path / "some.safetensors")
    quick = ("evaluate", "some", *LITTLE)

    def full(_, path):
        raise FuncrobustError(f"cannot write {path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", full)
        done = run_cli(*quick, cwd=tmp_path)
    (tmp_path / "evaluation.html").mkdir()
    assert done.returncode == 0
    assert "warning: cannot write evaluation.html" in done.stdout
    done = run_cli(*quick, "--page", "evaluation.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot write evaluation.html" in done.stderr


def test_a_page_is_html():
    done = run_cli("evaluate", "--page", "page.txt")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --page must name a .html file, got page.txt\n",
    )


# --- in a browser -------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH, nor named by CHROMIUM")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_a_browser_shows_it_without_scrolling_sideways(made, tmp_path, width, dark):
    require_shown_well(made[2], tmp_path, width, dark)
