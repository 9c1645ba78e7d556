"""Trainings on two processes of ``torchrun``: the numbers of one, also after one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLI = str(Path(__file__).parents[2] / "cli.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CURE = (
    "cure-train", "--dataset", "digits", "--train-examples", "256", "--test-examples", "60",
    "--evaluate-examples", "41", "--robust-examples", "41", "--evaluate-steps", "3",
    "--epochs", "3", "--model", "preact-tiny-silu", "--ema", "0.9", "--cure-fraction", "0.5",
    "--precision", "fp32",
)  # fmt: skip


def command(folder, *words):
    """Python, in a folder, on one thread."""
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=given, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(run, other, off):
    """Up to ``off`` of the largest parameter of a tensor: sums over the batch in another order."""
    mine, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (run, other))
    for name, tensor in theirs.items():
        limit = off * float(tensor.abs().max())
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=limit)
    for one, two in zip(records(run), records(other), strict=True):
        assert one.keys() == two.keys()
        assert one["step"] == two["step"]
        for name in ("loss", "curvature", "anchor", "restoration", "heldout_drift"):
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=100 * off)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training by one process."""
    folder = tmp_path_factory.mktemp("alone")
    done(command(folder, CLI, *CURE, "--name", "run"))
    return folder / "runs" / "run"


def test_a_lost_process_and_one_that_goes_on_alone(alone, tmp_path):
    """One of two is killed in the second epoch; the other saves; one process ends the training."""
    run = tmp_path / "runs" / "run"
    launcher = command(tmp_path, *TORCHRUN, CLI, *CURE, "--name", "run")
    until(lambda: (run / "metrics.jsonl").exists() and records(run), launcher)
    os.kill(of_rank(1, launcher.pid), signal.SIGKILL)
    out, err = launcher.communicate(timeout=100)
    assert launcher.returncode != 0
    assert not (run / "result.json").exists(), "it was over before the process was killed"
    # Which of the two it notices first is chance: the loss, or the launcher's SIGTERM.
    lost = "another process of the run has ended; its state at step" in err
    assert lost or "--resume" in out
    done(command(tmp_path, CLI, "cure-train", "--resume", str(run)))
    assert_same(run, alone, 1e-4)


def until(ready, process):
    began = time.monotonic()
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 200
        time.sleep(0.05)


def of_rank(rank, launcher):
    """The process of a rank, among the launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text().replace("_RANK", "_"):
            return int(child)
    raise AssertionError(children)


def test_two_train_psi_as_one(digits_run, tmp_path):
    words = (
        "psi-train", "--checkpoint", str(digits_run[0]), "--updates", "6", "--batch-size", "16",
        "--evaluate-examples", "21", "--evaluate-steps", "2", "--heldout-examples", "20",
        "--precision", "fp32", "--strips", "0", "--name",
    )  # fmt: skip
    done(command(tmp_path, CLI, *words, "one"))
    out = done(command(tmp_path, *TORCHRUN, CLI, *words, "two"))
    assert out.count("held-out drift") == 1, "the first alone talks"
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]
    assert_same(runs / "two", runs / "one", 1e-3)


def test_batches_that_two_cannot_share(tmp_path):
    process = command(tmp_path, *TORCHRUN, CLI, *CURE, "--batch-size", "33")
    _, err = process.communicate(timeout=100)
    assert "error: 2 processes cannot share batches of 33 images" in err
    assert not (tmp_path / "runs").exists()


def test_two_draw_as_one(digits_run, tmp_path):
    """The same pictures and figures from one and from two."""
    words = (CLI, "apply", "generation", str(digits_run[0]), "--examples", "150", "--steps", "3")
    done(command(tmp_path, *words, "--png", "1.png", "--json", "1.json"))
    done(command(tmp_path, *TORCHRUN, *words, "--png", "2.png", "--json", "2.json"))
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    for name, scores in one.items():
        assert two[name] == pytest.approx(scores, rel=1e-3)
    study = (
        CLI, "study", "before", "--checkpoint", str(digits_run[0]), "--judge", str(digits_run[0]),
        "--images", "20", "--choosing", "11", "--examples", "20", "--attack-steps", "2",
        "--precision", "fp32", "--out",
    )  # fmt: skip
    done(command(tmp_path, *study, "1"))
    done(command(tmp_path, *TORCHRUN, *study, "2"))
    alone, shared = (
        json.loads((tmp_path / n / "study.json").read_text())["variants"]["before"][0]
        for n in ("1", "2")
    )
    assert shared["clean"] == alone["clean"]
    for kind in ("gaussian", "noise"):
        first, second = (
            next(iter(row[kind]["best"]["judges"].values())) for row in (alone, shared)
        )
        # Of a few images, some of which a rounding has sent elsewhere.
        assert second == pytest.approx(first, rel=0.2)
