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
import torch.distributed as dist
from problems import run_cli
from safetensors.torch import load_file

from funcrobust.core.shards import Shard
from funcrobust.running.processes import Processes

CLI = str(Path(__file__).parents[2] / "cli.py")
SEVERAL = str(Path(__file__).parents[1] / "two_processes.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CURE = (
    "cure-train", "--dataset", "digits", "--train-examples", "256", "--test-examples", "60",
    "--evaluate-examples", "41", "--robust-examples", "41", "--evaluate-steps", "3",
    "--epochs", "3", "--model", "preact-tiny-silu", "--ema", "0.9", "--cure-fraction", "0.5",
    "--precision", "fp32",
)  # fmt: skip


def command(folder, *words):
    """Python, in a folder, on one thread."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=given, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def by_one(folder, *words):
    """The same in this process, which saves the seconds that torch's import takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ran = run_cli(*words, cwd=folder)
    finally:
        torch.set_num_threads(threads)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


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
    by_one(folder, *CURE, "--name", "run")
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
    assert lost or "--resume" in out, err
    by_one(tmp_path, "cure-train", "--resume", str(run))
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


def of_the_digits(net):
    """What is shared, small, on the classifier ``net``: files are named alike in every folder."""
    psi = "--updates 6 --batch-size 16 --evaluate-examples 21 --evaluate-steps 2 --strips 0"
    study = "--images 20 --choosing 11 --examples 20 --attack-steps 2 --precision fp32 --out study"
    evaluate = "--examples 25 --steps 5 --epsilon 0.2 --no-checks --no-page --save kept.safetensors"
    draw = f"--judge {net} --examples 150 --steps 3 --png drawn.png --json drawn.json"
    return [
        f"psi-train --checkpoint {net} {psi} --heldout-examples 20 --precision fp32 --name psi",
        f"apply generation {net} {draw}",
        f"study before --checkpoint {net} --judge {net} {study}",
        f"evaluate {net} {evaluate} --json evaluated.json",
    ]


@pytest.fixture(scope="module")
def both(digits_run, tmp_path_factory):
    """The folders in which one process and two have run it all, and what the two have said.

    The two are a group throughout, which each command takes as it is.
    """
    folder = tmp_path_factory.mktemp("both")
    one, two = folder / "one", folder / "two"
    words = of_the_digits(digits_run[0])
    for place in (one, two):
        place.mkdir()
    for each in words:
        by_one(one, *each.split())
    return one, two, done(command(two, *TORCHRUN, SEVERAL, *words))


def figures(both, name):
    return [json.loads((folder / name).read_text()) for folder in both[:2]]


def test_the_first_alone_talks(both):
    assert both[2].count("held-out drift") == 1
    assert both[2].count("95 % interval") == 1


def test_two_train_psi_as_one(both):
    one, two = (folder / "runs" for folder in both[:2])
    assert [path.name for path in two.iterdir()] == ["psi"]
    assert_same(two / "psi", one / "psi", 1e-3)


def near(found, expected, shares, rel):
    """Alike in all figures; those of ``shares``, of so many images, up to the number given."""
    assert expected
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = {"abs": shares[name]} if name in shares else {"rel": rel}
        assert found[name] == pytest.approx(value, **tolerance), name


def test_two_draw_as_one(both):
    """The same figures of the pictures, of which each has made its part."""
    one, two = figures(both, "drawn.json")
    assert one["start"] != one["ψ"]
    for name, scores in one.items():
        near(two[name], scores, {"judge agrees": 1.5 / 150}, 1e-2)


def test_two_study_as_one(both):
    """Of a few images, some of which a rounding has sent elsewhere: what is best may differ."""
    alone, shared = (study["variants"]["before"][0] for study in figures(both, "study/study.json"))
    assert shared["clean"] == alone["clean"]
    shares = dict.fromkeys(("agreement", "precision", "recall"), 3.5 / 20)
    for kind in ("gaussian", "noise"):
        ours, theirs = (
            {(point["way"], point["steps"]): point["judges"] for point in row[kind]["choices"]}
            for row in (shared, alone)
        )
        assert ours.keys() == theirs.keys()
        for way, judges in theirs.items():
            ((name, scores),) = judges.items()
            near(ours[way][name], scores, shares, 0.2)


def test_two_evaluate_as_one(both):
    """An odd number of images: the same figures, the same fallen, but for one on the edge.

    Batches of 25, and of 13 and 12, round apart, and a slope of 0 or nearly may take another sign.
    """
    one, two = figures(both, "evaluated.json")
    assert one.keys() == two.keys()
    assert two["clean"] == one["clean"]
    assert two["robust"] < two["clean"]
    assert two["robust"] == pytest.approx(one["robust"], abs=1.5 / 25)
    first, second = (load_file(folder / "kept.safetensors") for folder in both[:2])
    assert first.keys() == second.keys()
    alike = [(first[name] == second[name]).sum() for name in ("fell_to", "predicted")]
    assert min(alike) >= 24
    pixels = (first["images"] - second["images"]).abs()
    assert (pixels > 1e-4).float().mean() < 0.02
    assert pixels.max() <= 2 * 0.2 + 1e-4


def test_batches_that_two_cannot_share(tmp_path, monkeypatch):
    """One process, in a group of its own, that takes itself for the first of two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr("funcrobust.running.processes._here", Processes(Shard(0, 2, "")))
    try:
        ran = run_cli(*CURE, "--batch-size", "33", cwd=tmp_path)
    finally:
        dist.destroy_process_group()
    assert ran.returncode == 2
    assert "error: 2 processes cannot share batches of 33 images" in ran.stderr
    assert not (tmp_path / "runs").exists()
