"""The commands as a user runs them, from the first word to the last file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from problems import ROOT, run_child, run_cli
from safetensors.torch import load_file

from funcrobust.commands.cure_train import assemble

DIGITS = ("--dataset", "digits", "--test-examples", "200", "--evaluate-examples", "200")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def robust_digits(runs, digits_run):
    """cure-train on the digits, and standard training beside it."""
    plain = run_cli(
        "cure-train", *DIGITS, "--epochs", "6", "--out", str(runs), "--name", "plain",
        "--attack", "none", "--lambda", "0",
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    return digits_run[0], runs / "plain", digits_run[1]


def card(run):
    return json.loads((run / "checkpoint.json").read_text())


def test_cure_train_makes_digits_more_robust_than_standard_training(robust_digits):
    cure, plain, _ = robust_digits
    assert card(cure)["metrics"]["pgd20"] >= card(plain)["metrics"]["pgd20"] + 0.10
    assert card(cure)["metrics"]["clean"] >= 0.80


def test_a_run_folder_has_all_it_should(robust_digits):
    run = robust_digits[0]
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.json", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.json",
        "state.safetensors", "console.log", "curves.png", "adversarial.png",
    }  # fmt: skip
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(1, 7))
    assert all(r["curvature"] >= 0 for r in records)
    assert json.loads((run / "config.json").read_text())["options"]["h"] == 3.0
    assert card(run)["command"].startswith("python cli.py cure-train --preset digits --")


def test_cure_train_says_its_preset_in_the_first_line(robust_digits):
    first = robust_digits[2].splitlines()[0]
    assert first.startswith("preset digits on CPU") or "cuda" in first
    assert "\x1b" not in robust_digits[2], "no colours or bars where there is no terminal"


def test_psi_train_lowers_the_heldout_drift(robust_digits, runs):
    result = run_cli(
        "psi-train", *DIGITS, "--objective", "drift", "--checkpoint", str(robust_digits[0]),
        "--updates", "20", "--batch-size", "32", "--lr-max", "0.03", "--anchor", "1",
        "--out", str(runs), "--name", "psi", "--epsilon", "0.15",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    records = [json.loads(s) for s in (runs / "psi" / "metrics.jsonl").read_text().splitlines()]
    # By a seventh here. An update in a wrong direction raises it.
    assert records[-1]["heldout_drift"] < 0.95 * records[0]["heldout_drift"]
    assert records[-1]["clean"] > records[0]["clean"] - 0.1
    assert (runs / "psi" / "before_after.png").stat().st_size > 5000
    before, after = (
        load_file(p / "checkpoint.safetensors") for p in (robust_digits[0], runs / "psi")
    )
    assert any(not torch.equal(before[k], after[k]) for k in before if "weight" in k)
    assert all(torch.equal(before[k], after[k]) for k in before if "running" in k)
    wrong = run_cli("cure-train", "--resume", str(runs / "psi"))
    assert wrong.returncode == 2
    assert "psi-train run" in wrong.stderr


def test_a_finished_run_says_so(robust_digits):
    before = (robust_digits[0] / "checkpoint.safetensors").read_bytes()
    result = run_cli("cure-train", "--resume", str(robust_digits[0]))
    assert result.returncode == 2
    assert "is complete" in result.stderr
    assert (robust_digits[0] / "checkpoint.safetensors").read_bytes() == before


def test_a_network_of_ones_own(tmp_path):
    """--model package.module:factory, through every command; and one that does not fit the data."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(),"
        " nn.Linear(288, 10))\n"
        "def wide():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    model = ("--model", "mine:net")
    size = ("--evaluate-examples", "50", "--evaluate-steps", "5", "--name")
    done = run_cli(
        "cure-train", "--preset", "digits", "--epochs", "2", *model, *size, "own", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = str(tmp_path / "runs" / "own")
    for command in (
        ("evaluate", run, "--examples", "50", "--steps", "5", *model),
        ("psi-train", "--checkpoint", run, "--updates", "2", *model, *size, "own-psi"),
        ("generate", run, "--steps", "2", *model),
    ):
        result = run_cli(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert all(card(tmp_path / "runs" / name)["fingerprint"] for name in ("own", "own-psi"))
    refused = run_cli("evaluate", run, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--model mine:net" in refused.stderr
    code = tmp_path / "mine.py"
    code.write_text(code.read_text().replace("ReLU", "SiLU"))
    refused = run_cli("evaluate", run, *model, cwd=tmp_path)
    assert refused.returncode == 2
    assert "does not make the mine:net it was saved as" in refused.stderr
    result = run_cli("cure-train", "--preset", "digits", "--model", "mine:wide", cwd=tmp_path)
    assert result.returncode == 2
    assert "logits" in result.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 2, "refused before a run folder is made"


def test_a_network_with_dropout_trains_to_the_same_bits(tmp_path):
    """Masks are counted: the same training twice ends in the same bits."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def drop():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3),"
        " nn.Linear(32, 10))\n"
    )
    for name in ("one", "two"):
        done = run_cli(
            "cure-train", "--preset", "digits", "--model", "mine:drop", "--epochs", "1",
            "--train-examples", "256", "--test-examples", "64", "--evaluate-examples", "50",
            "--robust-examples", "32", "--name", name, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    files = [tmp_path / "runs" / name / "checkpoint.safetensors" for name in ("one", "two")]
    first, second = (load_file(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluate_uses_the_threat_model_of_training(robust_digits):
    result = run_cli("evaluate", str(robust_digits[0]), "--examples", "200", "--json", "-")
    figures = json.loads(result.stdout)
    assert figures["epsilon"] == 0.15
    # Other test images than in training's own figure; at the default 8/255 it would be about 0.9.
    assert figures["robust"] == pytest.approx(card(robust_digits[0])["metrics"]["worst"], abs=0.12)


def test_evaluate_writes_json_and_generate_a_picture(robust_digits, tmp_path):
    cure, plain, _ = robust_digits
    result = run_cli(
        "evaluate", str(cure), "--examples", "100", "--steps", "10", "--restarts", "2",
        "--epsilon", "0.15", "--json", "-",
    )  # fmt: skip
    figures = json.loads(result.stdout)
    assert figures["restarts"] == 2
    assert 0 < figures["robust"] <= figures["clean"] <= 1
    png = tmp_path / "made.png"
    result = run_cli("generate", str(cure), str(plain), "--png", str(png), "--steps", "5")
    assert result.returncode == 0, result.stderr
    assert png.read_bytes().startswith(b"\x89PNG")


def test_both_commands_on_a_slice_of_cifar10(cifar, runs):
    """Real images: two short passes teach the network something, and the drift falls."""
    size = ("--train-examples", "1280", "--test-examples", "256", "--evaluate-examples", "256")
    result = run_cli(
        "cure-train", "--h", "3", *size, "--epochs", "2", "--batch-size", "64",
        "--robust-examples", "64", "--out", str(runs), "--name", "cifar",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # A quarter here. Chance is 0.10, and 0.02 the standard deviation of that over 256 images.
    assert card(runs / "cifar")["metrics"]["clean"] > 0.16
    result = run_cli(
        "psi-train", *size, "--checkpoint", str(runs / "cifar"), "--updates", "12", "--batch-size",
        "32", "--objective", "drift", "--lr-max", "0.06", "--heldout-examples", "128",
        "--anchor", "0", "--evaluate-steps", "5", "--out", str(runs), "--name", "cifar-psi",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = (runs / "cifar-psi" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(s) for s in metrics]
    drifts = [record["heldout_drift"] for record in records]
    assert drifts[-1] < 0.97 * drifts[0], drifts


SHORT = ("cure-train", *DIGITS, "--train-examples", "320", "--batch-size", "16", "--epochs")


@pytest.fixture(scope="module", params=["SGD", "Muon"])
def uninterrupted(runs, request):
    name = f"whole-{request.param}"
    done = run_cli(*SHORT, "4", "--opt", request.param, "--out", str(runs), "--name", name)
    assert done.returncode == 0, done.stderr
    return request.param, runs / name


@pytest.mark.parametrize(("stop", "batch"), [(signal.SIGINT, 75), (signal.SIGTERM, 105)])
def test_interrupted_and_resumed_equals_uninterrupted(
    runs, uninterrupted, monkeypatch, stop, batch
):
    """Stopped in the second epoch's updates or after them, continued: the same bits as the whole.

    Batches are drawn for an epoch's 20 updates and then for 40 of calibration.
    """
    drawn, draw = 0, assemble.Batches.__call__

    def stopping(self, step):
        nonlocal drawn
        drawn += 1
        if drawn == batch:
            os.kill(os.getpid(), stop)
        return draw(self, step)

    monkeypatch.setattr(assemble.Batches, "__call__", stopping)
    opt, straight = uninterrupted
    run = runs / f"stopped-{stop.name}-{opt}"
    stopped = run_cli(*SHORT, "4", "--opt", opt, "--out", str(runs), "--name", run.name)
    monkeypatch.undo()
    assert stopped.returncode == 130, stopped.stderr
    assert "--resume" in stopped.stdout
    assert (run / "checkpoint.safetensors").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    resumed = run_cli("cure-train", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    whole, parts = (load_file(r / "checkpoint.safetensors") for r in (straight, run))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    records = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]


def test_a_signal_from_outside(runs):
    """A process of its own, in a training that would go on for hours."""
    process = subprocess.Popen(
        [sys.executable, "cli.py", *SHORT, "10000", "--out", str(runs), "--name", "far"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    metrics, deadline = runs / "far" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in out
    assert (runs / "far" / "checkpoint.safetensors").exists()


def test_a_loss_that_becomes_nan_stops_and_keeps_the_last_good_state(runs):
    result = run_cli(
        "cure-train", *DIGITS, "--epochs", "3", "--lr-max", "1e18", "--lr-schedule", "constant",
        "--out", str(runs), "--name", "nan",
    )  # fmt: skip
    assert result.returncode == 2
    assert "NaN or infinite" in result.stdout
    kept = load_file(runs / "nan" / "checkpoint.safetensors")
    assert all(torch.isfinite(t).all() for t in kept.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_and_absent(tmp_path):
    result = run_child("cure-train", "--device", "cuda", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: CUDA was asked for")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoints(robust_digits, tmp_path):
    whole = (robust_digits[0] / "checkpoint.safetensors").read_bytes()
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(whole[: len(whole) // 2])
    result = run_cli("evaluate", str(truncated))
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*truncated.*\n", result.stderr)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run_cli("cure-train", *DIGITS, "--epochs", "1", "--out", str(tmp_path / "file"))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_import_costs_little_more_than_torch():
    def loaded(code):
        program = f"{code}\nimport sys; print(' '.join(sys.modules))"
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()

    heavy = {
        "torchvision", "matplotlib", "rich", "robustness", "torchmetrics", "sklearn", "cyclopts",
        "cattrs",
    }  # fmt: skip
    assert not heavy & set(loaded("import funcrobust as fr; fr.psi, fr.cure, fr.functionalize"))
    assert "torch" not in loaded("import funcrobust")
