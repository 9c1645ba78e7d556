"""Both trainings, killed and stopped: nothing is lost, and all of it can be used meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from problems import ROOT, run_cli
from safetensors.torch import load_file

from funcrobust import checkpoints
from funcrobust.commands.cure_train import recipe
from funcrobust.report import plots

TINY = (
    "--dataset", "digits", "--train-examples", "64", "--test-examples", "32", "--batch-size", "16",
    "--evaluate-examples", "16", "--evaluate-steps", "2", "--name", "run",
)  # fmt: skip
BARE = ("cure-train", *TINY, "--robust-examples", "16")
CURE = (*BARE, "--epochs", "2", "--ema", "0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    done = run_cli(*CURE, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out / "run"


def equals(run, whole):
    ours, theirs = (load_file(r / "checkpoint.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("metrics.jsonl", "curves.png", "adversarial.png"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_true_kills_of_both_trainings():
    """A short sweep of benchmarks/kill_sweep.py, which the longer one is run by too."""
    swept = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill_sweep.py"), "--kills", "1"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "nothing was lost" in swept.stdout


@pytest.mark.parametrize("where", ["before the checkpoint", "in the evaluation", "in the pictures"])
def test_a_run_stopped_after_its_last_epoch_is_finished(tmp_path, whole, monkeypatch, where):
    class KilledError(BaseException):
        pass

    def killed(*args, **kwargs):
        raise KilledError

    if where == "before the checkpoint":
        monkeypatch.setattr(recipe, "save_checkpoint", killed)
    elif where == "in the evaluation":
        monkeypatch.setattr(recipe, "which_test_images", killed)
    else:
        monkeypatch.setattr(plots, "image_grid", killed)
    with pytest.raises(KilledError):
        run_cli(*CURE, "--out", str(tmp_path))
    monkeypatch.undo()
    run = tmp_path / "run"
    assert not (run / "result.json").exists()
    resumed = run_cli("cure-train", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    equals(run, whole)
    again = run_cli("cure-train", "--resume", str(run))
    assert (again.returncode, "is complete (finished after 8" in again.stderr) == (2, True)


def test_a_signal_in_the_last_evaluation(tmp_path, whole, monkeypatch):
    def stopping(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(recipe, "which_test_images", stopping)
    stopped = run_cli(*CURE, "--out", str(tmp_path))
    monkeypatch.undo()
    assert stopped.returncode == 130
    assert f"cure-train --resume {tmp_path / 'run'}" in stopped.stdout
    assert run_cli("cure-train", "--resume", str(tmp_path / "run")).returncode == 0
    equals(tmp_path / "run", whole)


def test_a_picture_that_is_gone_is_drawn_again(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "adversarial.png").unlink()
    assert run_cli("cure-train", "--resume", str(run)).returncode == 0
    equals(run, whole)


def test_a_state_beyond_the_end_of_its_run_is_one_line(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    (run / "state-before.safetensors").unlink()
    tensors, meta = checkpoints.load_state(run)
    (run / "state.safetensors").unlink()
    checkpoints.save_state(run, tensors | {"step": torch.tensor(9)}, meta | {"step": 9})
    refused = run_cli("cure-train", "--resume", str(run))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "is damaged: it is at step 9 of a run of 8 updates" in line


def test_a_run_without_a_checkpoint_is_read_from_its_state(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("checkpoint.safetensors", "checkpoint.json", "result.json"):
        (run / name).unlink()
    network, card = checkpoints.load(run)
    expected, its_card = checkpoints.load(whole)
    assert all(map(torch.equal, network.parameters(), expected.parameters()))
    assert (card.model, card.mean, card.std, card.epsilon, card.class_names) == (
        its_card.model, its_card.mean, its_card.std, its_card.epsilon, its_card.class_names
    )  # fmt: skip
    line = f"{run}: from its state at step 8, the run has not ended"
    for words in (
        ("evaluate", str(run), "--examples", "16", "--steps", "2"),
        ("generate", str(run), "--steps", "1", "--png", str(tmp_path / "made.png")),
        ("export", str(run), str(tmp_path / "out.pt")),
    ):
        done = run_cli(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(line) == 1
    (run / "state.safetensors").write_bytes(b"")
    (run / "state-before.safetensors").write_bytes(b"")
    assert run_cli("evaluate", str(run)).returncode == 2


def test_an_average_is_what_a_state_is_read_as(tmp_path):
    done = run_cli(*BARE, "--epochs", "1", "--ema", "0.9", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (tmp_path / "run" / "checkpoint.safetensors").rename(tmp_path / "kept.safetensors")
    network, _ = checkpoints.load(tmp_path / "run")
    expected, _ = checkpoints.load(tmp_path / "kept.safetensors")
    assert all(map(torch.equal, network.parameters(), expected.parameters()))


def test_learned_start_images_are_no_part_of_the_network(tmp_path, whole):
    done = run_cli(
        "psi-train", *TINY, "--checkpoint", str(whole), "--updates", "2", "--objective", "drift",
        "--learn-starts", "8", "--heldout-examples", "16", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    assert checkpoints.load(tmp_path / "run")[1].notes.startswith("the state at step 2")


def test_what_cannot_be_begun_is_refused_before_all_work(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(recipe, "load_data", lambda *_: pytest.fail("read the data"))
    taken = run_cli(*CURE, "--out", str(whole.parent))
    assert (taken.returncode, "exists already" in taken.stderr) == (2, True)
    complete = run_cli("cure-train", "--resume", str(whole))
    assert (complete.returncode, "is complete" in complete.stderr) == (2, True)
    for flag in ("--name", "--out", "--dataset"):
        refused = run_cli("cure-train", flag, os.fsdecode(b"\xff\xfe"))
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert "\\udcff" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_full_disk_at_the_end_loses_nothing(tmp_path, whole, monkeypatch):
    fsync = os.fsync

    def full(descriptor):
        if "checkpoint" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    stopped = run_cli(*CURE, "--out", str(tmp_path))
    monkeypatch.undo()
    assert stopped.returncode == 2
    assert "No space left" in stopped.stderr
    assert (
        f"the training itself is saved: python cli.py cure-train --resume {tmp_path / 'run'}"
        in (stopped.stderr)
    )
    assert run_cli("cure-train", "--resume", str(tmp_path / "run")).returncode == 0
    equals(tmp_path / "run", whole)


def test_a_folder_deleted_in_the_last_evaluation_is_rescued(tmp_path, whole, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    which = recipe.which_test_images

    def deleting(*args):
        shutil.rmtree(tmp_path / "run")
        return which(*args)

    monkeypatch.setattr(recipe, "which_test_images", deleting)
    stopped = run_cli(*CURE, "--out", str(tmp_path))
    monkeypatch.undo()
    assert stopped.returncode == 2
    (rescued,) = tmp_path.glob("funcrobust-*/run")
    assert f"--resume {rescued}" in stopped.stderr
    assert run_cli("cure-train", "--resume", str(rescued)).returncode == 0
    equals(rescued, whole)


def test_signals_and_pipes_from_outside(tmp_path):
    """A process of its own whose reader has left: stopped, continued, then asked to end."""
    process = subprocess.Popen(
        [sys.executable, "cli.py", *BARE, "--epochs", "100000", "--ema", "0", "--out",
         str(tmp_path)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120

    def epochs():
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def wait_for(more):
        until = epochs() + more
        while epochs() < until:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)

    wait_for(1)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    wait_for(2)
    second = run_cli("cure-train", "--resume", str(tmp_path / "run"))
    assert (second.returncode, "under way in another process" in second.stderr) == (2, True)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(60) == 130
    assert "Traceback" not in said
    log = (tmp_path / "run" / "console.log").read_text()
    assert "--resume" in log
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(1, len(records) + 1))
