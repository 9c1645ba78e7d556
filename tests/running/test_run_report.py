"""A run's own page: what it says, when it is written, and what of a folder it believes."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil

import pytest
from pages import CHROMIUM, Seen, require_self_contained, require_shown_well
from problems import parsed, run_cli

from funcrobust.commands.cure_train import CureTrain, recipe
from funcrobust.report import Reporter, RunFolder
from funcrobust.running import run_report
from funcrobust.running.config import from_config, to_config
from funcrobust.running.run_report import Live, RunReport, gather, renew

KINDS = (CureTrain,)
LIVE = Live("running", "Update 1 of 2.", 60)
HOSTILE = "<script>alert('x')</script>\"\n\x1b[31m&\u202e" + "w" * 300
TINY = (
    "cure-train", "--dataset", "digits", "--train-examples", "64", "--test-examples", "32",
    "--batch-size", "16", "--evaluate-examples", "16", "--evaluate-steps", "2", "--ema", "0",
    "--robust-examples", "16", "--epochs", "2", "--save-every", "1e-9",
)  # fmt: skip


def page_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def refreshes(seen):
    return [m["content"] for m in seen.all("meta") if m.get("http-equiv") == "refresh"]


def toy(tmp_path, **options):
    options = CureTrain.filled({"dataset": "digits", "preset": "digits", **options})
    run = RunFolder.create(tmp_path, "cure-train", to_config(options), "run")
    run.log({"epoch": 1, "step": 10, "loss": 1.5, "test_clean": 0.25, "test_worst": 0.125})
    run.log({"epoch": 2, "step": 20, "loss": 0.5, "test_clean": 0.75, "test_worst": 0.5})
    return run, options


# --- what it says -----------------------------------------------------------------------------


def test_a_finished_run_in_the_order_of_weight(digits_run, tmp_path):
    # A copy that has not been evaluated: another test may have done that.
    folder = tmp_path / "cure"
    shutil.copytree(digits_run[0], folder, ignore=shutil.ignore_patterns("evaluation.*"))
    renew(RunFolder.open(folder), KINDS)
    text = page_of(folder)
    seen = require_self_contained(text)
    result = json.loads((folder / "result.json").read_text())
    at = -1
    clean, worst = (f"{100 * result['metrics'][name]:.1f} %" for name in ("clean", "worst"))
    for part in (
        "cure-train cure", "finished", f"After {result['step']} updates", "--preset digits",
        "--epochs", "6", "20", "clean", clean, "worst", worst, "Not evaluated yet", "accuracy",
        "loss", "adversarial.png", "Reproduce it", "Evaluate it", "torch",
        "@software{funcrobust", "arXiv:2001.03994", "arXiv:1811.09716",
    ):  # fmt: skip
        at = seen.text.find(part, at + 1)
        assert at >= 0, f"{part} is not there, or not in its place"
    assert "Resume it" not in seen.text
    assert refreshes(seen) == []


def test_figures_are_the_newest_of_each():
    """Not every epoch is watched."""
    records = [
        {"epoch": 1, "step": 10, "loss": 3.0}, {"epoch": 2, "step": 20, "loss": 2.0, "worst": 0.3},
        {"epoch": 3, "step": 30, "loss": 1.0},
    ]  # fmt: skip
    found, note = run_report.figures_of(None, records)
    assert found == {"loss": 1.0, "worst": 0.3}
    assert note == "In the last record, at update 30; what it lacks at update 20."
    assert run_report.figures_of(None, records[:2])[1] == "In the last record, at update 20."


@pytest.mark.parametrize(
    ("attack", "paper"), [("fgsm", "2001.03994"), ("rs-fgsm", "2001.03994"), ("pgd", "1706.06083")]
)
def test_the_papers_of_an_attack_by_whichever_name(attack, paper):
    options = CureTrain.filled({"preset": "fast", "attack": attack})
    assert f"{attack}, arXiv:{paper}" in run_report._papers(options)


def test_its_pictures_are_the_runs_own(digits_run):
    (shown,) = Seen(page_of(digits_run[0])).all("img")
    content = base64.b64decode(shown["src"].partition(",")[2])
    assert content == (digits_run[0] / "adversarial.png").read_bytes()


def test_the_command_on_it_makes_the_same_run(digits_run):
    seen = Seen(page_of(digits_run[0]))
    words = shlex.split(seen.texts[seen.texts.index("Reproduce it:") + 2])
    run = RunFolder.open(digits_run[0])
    stored = from_config(CureTrain, run.config, "")
    again = parsed(*words[2:])
    assert to_config(again) | {"out": "", "name": ""} == to_config(stored) | {"out": "", "name": ""}


def test_options_that_differ_come_first_with_what_they_would_have_been(tmp_path):
    run, options = toy(tmp_path, epochs=7, h=1.5, name="run")
    page = gather(run, KINDS)
    rows = [(row.flag, row.value, row.usual) for row in page.differing]
    assert sorted(rows) == [("--epochs", "7", "20"), ("--h", "1.5", "3")]
    assert len(page.options) == len(to_config(options))


def test_the_verdict_of_an_evaluation_is_on_it(digits_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(digits_run[0], folder)
    done = run_cli("evaluate", str(folder), "--examples", "12", "--steps", "1", "--restarts", "1")
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "evaluation.json").read_text())
    seen = require_self_contained(page_of(folder))
    assert f"{figures['verdict']}: {100 * figures['robust']:.1f} %" in seen.text
    assert "Not evaluated yet" not in seen.text
    assert "--epochs" in seen.text, "it still knows the training's options"


# --- when it is written -------------------------------------------------------------------------


def test_it_is_renewed_while_the_run_goes_on_and_when_it_ends(tmp_path, monkeypatch):
    seen, draw = [], recipe.draw

    def interrupted(*args):
        draw(*args)
        seen.append(Seen(page_of(tmp_path / "run")))
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "draw", interrupted)
    stopped = run_cli(*TINY, "--out", str(tmp_path), "--name", "run")
    assert stopped.returncode == 130
    assert "running" in seen[0].text
    assert "Update 8 of 8 (100%)" in seen[0].text
    assert refreshes(seen[0]) == ["5"]
    after = require_self_contained(page_of(tmp_path / "run"))
    assert "interrupted" in after.text
    assert refreshes(after) == []
    command = after.texts[after.texts.index("Resume it:") + 2]
    monkeypatch.undo()
    finished = run_cli(*shlex.split(command)[-3:])
    assert finished.returncode == 0, finished.stderr
    ended = require_self_contained(page_of(tmp_path / "run"))
    assert "finished" in ended.text
    assert "Resume it" not in ended.text


def test_it_is_written_as_often_as_the_state_is_saved_at_most(tmp_path):
    run, options = toy(tmp_path)
    with Reporter.silent() as reporter:
        report = RunReport(run, options, 20, reporter)
        report.renew(0, "")
        first = page_of(run.path)
        report.renew(10, "0:00:10 left")
        assert page_of(run.path) == first
        report.end("interrupted", 10)
    assert "At update 10 of 20" in page_of(run.path)
    assert sorted(p.name for p in run.path.iterdir()) == [
        "config.json", "metrics.jsonl", "report.html",
    ]  # fmt: skip


def test_one_that_cannot_be_written_is_a_warning_once_and_stops_nothing(tmp_path, capsys):
    run, options = toy(tmp_path)
    run.file("report.html").mkdir()
    with Reporter() as reporter:
        report = RunReport(run, options, 20, reporter)
        report.renew(0, "")
        report.end("interrupted", 0)
    assert capsys.readouterr().out.count("warning: report.html is not up to date") == 1


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path):
    run, options = toy(tmp_path)
    shutil.rmtree(run.path)
    with Reporter.silent() as reporter:
        RunReport(run, options, 20, reporter).renew(0, "")
    assert not run.path.exists()


# --- what it believes ---------------------------------------------------------------------------


def test_hostile_texts_are_text(tmp_path):
    """In every file of a run that a page is made of."""
    run, _ = toy(tmp_path)
    record = json.loads(run.file("config.json").read_text())
    record |= {"command": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    record["options"] |= {HOSTILE: HOSTILE, "dataset": HOSTILE}
    run.file("config.json").write_text(json.dumps(record))
    lines = [{"step": i, "epoch": i, HOSTILE: i / 7, "note": HOSTILE} for i in (1, 2)]
    run.file("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"status": HOSTILE, "step": HOSTILE, "metrics": {HOSTILE: 1.0}, "files": []}
    run.file("result.json").write_text(json.dumps(result))
    evaluation = {
        "verdict": HOSTILE, "because": [HOSTILE], "not_tried": [], "clean": 0.5, "robust": 0.25,
        "robust_interval": [0.1, 0.4], "examples": 3, "attacks": [HOSTILE], "constraint": HOSTILE,
        "epsilon": 0.1,
    }  # fmt: skip
    run.file("evaluation.json").write_text(json.dumps(evaluation))
    renew(RunFolder.open(run.path), KINDS)
    text = page_of(run.path)
    seen = require_self_contained(text)
    assert "<script" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", text)
    assert seen.text.count("alert('x')") > 8


DAMAGED = [b"[" * 50_000, b"null", b"\xff", b'{"a": 1}\n{"\n{}\n', b'{"robust": 1e999}']


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "result.json"])
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_left_out(tmp_path, name, content):
    run, _ = toy(tmp_path)
    run.file(name).write_bytes(content)
    renew(run, KINDS, LIVE)
    seen = require_self_contained(page_of(run.path))
    assert "Update 1 of 2." in seen.text
    said = "metrics.jsonl, line 2 is damaged" in seen.text  # a last line may be a crash's
    assert said == (name == "metrics.jsonl" and b"\n" in content)


@pytest.mark.skipif(os.name == "nt", reason="no links there")
def test_pictures_are_plain_files_of_the_folder(tmp_path):
    secret = tmp_path / "secret.png"
    png = b"\x89PNG\r\n\x1a\n" + b"0" * 20
    secret.write_bytes(png)
    run, _ = toy(tmp_path)
    (run.path / "linked.png").symlink_to(secret)
    (run.path / "text.png").write_text("<script>")
    (run.path / "large.png").write_bytes(png + bytes(3 * 2**20))
    os.mkfifo(run.path / "pipe.png")
    (run.path / "good.png").write_bytes(png)
    assert [picture.name for picture in gather(run, KINDS).pictures] == ["good.png"]
    for name in ("linked", "text", "large", "pipe", "good"):
        (run.path / f"{name}.png").unlink()
    (tmp_path / "strips").mkdir()
    (tmp_path / "strips" / "step-1.png").write_bytes(png)
    (run.path / "strips").symlink_to(tmp_path / "strips")
    assert gather(run, KINDS).pictures == []


@pytest.mark.skipif(os.name == "nt", reason="no links there")
def test_a_link_in_the_pages_place_is_not_followed(digits_run, tmp_path):
    """An evaluation writes into a folder that may be anyone's."""
    folder = tmp_path / "run"
    shutil.copytree(digits_run[0], folder)
    for name in ("report.html", "evaluation.json"):
        (tmp_path / name).write_text("mine")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / name)
        done = run_cli("evaluate", str(folder), "--examples", "2", "--steps", "1", "--no-checks")
        assert done.returncode == 0, done.stderr
        assert f"{name} is a link" in done.stdout
        assert (tmp_path / name).read_text() == "mine"


def test_a_run_of_another_version_shows_its_options_as_they_are(tmp_path):
    run, _ = toy(tmp_path)
    run.config["of_tomorrow"] = [1, 2]
    page = gather(run, KINDS)
    assert page.differing == []
    assert ("of_tomorrow", "[1, 2]") in [(row.flag, row.value) for row in page.options]


# --- in a browser -------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH, nor named by CHROMIUM")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_a_browser_shows_it_without_scrolling_sideways(digits_run, tmp_path, width, dark):
    require_shown_well(page_of(digits_run[0]), tmp_path, width, dark)
