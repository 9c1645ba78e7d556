"""Files that a command writes: none is what it reads, what it writes besides, or a run's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from problems import ROOT

from funcrobust import cli
from funcrobust.commands.evaluate import Evaluate
from funcrobust.core.errors import FuncrobustError
from funcrobust.running.budget import LONGEST, Budget, update_seconds

QUICK = ("--examples", "4", "--steps", "1", "--restarts", "1", "--no-checks")


@pytest.fixture
def run(digits_run, tmp_path, monkeypatch):
    """A run's copy in an empty folder, where the commands are said."""
    shutil.copytree(digits_run[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def said(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("evaluate", "run", "--json", "x.safetensors", "--save", "x.safetensors"), "--save"),
        (("evaluate", "run", "--page", "p.html", "--json", "./p.html"), "--page"),
        (("evaluate", "copy.safetensors", "--json", "copy.safetensors"), "--json"),
        (("evaluate", "run", "--json", "run/config.json"), "--json"),
        (("evaluate", "run", "--save", "run/state.safetensors"), "--save"),
        (("evaluate", "run", "--json", "linked.json"), "--json"),
        (("apply", "denoising", "run", "--png", "p.png", "--json", "p.png"), "--json"),
        (("apply", "super-resolution", "run", "--image", "own.png", "--png", "own.png"), "--png"),
        (("evaluate", "run", "--json", "a" * 300), "--json"),
        (("evaluate", "run", "--page", "a" * 300 + ".html"), "--page"),
        (("evaluate", "run", "--save", "a" * 300 + ".safetensors"), "--save"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_before_any_work(run, capsys, words, flag):
    shutil.copy(run / "checkpoint.safetensors", "copy.safetensors")
    (run.parent / "own.png").write_bytes(b"mine")
    (run.parent / "linked.json").symlink_to(run / "metrics.jsonl")
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    code, err = said(capsys, *words)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert flag in err
    assert {p: p.read_bytes() for p in run.parent.rglob("*") if p.is_file()} == before


def test_a_runs_page_is_not_written_over_a_link(run, capsys):
    (run.parent / "precious").write_text("mine")
    (run / "evaluation.html").unlink(missing_ok=True)
    (run / "evaluation.html").symlink_to(run.parent / "precious")
    cli_main = ("evaluate", "run", *QUICK)
    with pytest.raises(SystemExit) as ended:
        cli.main(cli_main)
    assert ended.value.code == 0  # the figures are there
    out = " ".join(capsys.readouterr().out.split())
    assert "is a link" in out
    assert "--no-page" in out
    assert (run.parent / "precious").read_text() == "mine"


def test_a_name_that_only_begins_as_a_runs_file_is_free(run):
    """An export's natural name, in the folder of the run."""
    from funcrobust.running.places import require_apart

    for name in ("state_dict.pt", "statement.safetensors", "state.json"):
        require_apart(Evaluate(checkpoint="run", json_file=run / name))
    for name in ("state.safetensors", "state-before.safetensors", "state-recorded.safetensors"):
        with pytest.raises(FuncrobustError, match="a file of a run"):
            require_apart(Evaluate(checkpoint="run", json_file=run / name))


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_signal_keeps_what_an_evaluation_has_found(run, number):
    done = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "evaluate", "run", "--examples", "300",
         "--steps", "100000", "--no-checks", "--no-page", "--save", "found.safetensors"],
        cwd=run.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.stdout is not None
    shown = ""
    while "attack" not in shown:
        shown += done.stdout.readline()
    time.sleep(0.5)
    done.send_signal(getattr(signal, number))
    rest, _ = done.communicate(timeout=120)
    assert done.returncode == 130, rest
    assert "the same command goes on from found.safetensors" in rest
    assert (run.parent / "found.safetensors").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--trades", "1e308"), ("--minutes", "1e18"),
        ("--device", "cuda:99999999999999999999"),
    ],
)  # fmt: skip
def test_numbers_out_of_all_bounds_end_in_a_line(run, capsys, words):
    few = ("--train-examples", "64", "--test-examples", "20", "--robust-examples", "4")
    code, err = said(capsys, "cure-train", "--preset", "digits", "--epochs", "1", *few, *words)
    assert code == 2
    assert "Traceback" not in err


def test_a_training_of_days_is_not_rehearsed_for_an_hour(monkeypatch):
    now = [0.0]

    def update(state, *_):
        now[0] += 1.0
        return state, {}

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert update_seconds(update, lambda _: (), None, Budget(minutes=1e6)) == 1.0
    assert now[0] <= LONGEST + 5


def test_a_standard_output_that_is_closed_is_no_traceback(run):
    line = f"exec {sys.executable} {ROOT / 'cli.py'} runs --out . >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=run.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")  # noqa: PTH110
def test_a_full_disk_behind_standard_output_is_a_line(run):
    line = f"exec {sys.executable} {ROOT / 'cli.py'} runs --out . --json - >/dev/full"
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=run.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to standard output")
