"""The benchmarks run, say where their figures are from, and can be compared: no time is judged."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from problems import ROOT

from funcrobust.data.dataset import Arrays


def compared(*words):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py"), *map(str, words)],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Two short parts of gpu.sh, as a GPU would be asked for all of them."""
    out = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "step", "attacks"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "REHEARSE": "1", "OUT": str(out), "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: next(out.glob(f"{name}-*.json")) for name in ("cure_step", "attack_throughput")}


def test_a_result_says_where_it_is_from_and_what_was_missing(rehearsed):
    found = json.loads(rehearsed["cure_step"].read_text())
    assert len(found["script_sha256"]) == 64
    assert found["script"] == "cure_step.py"
    assert found["versions"]["torch"]
    assert "commit" in found
    steps = found["step_seconds"]
    assert steps.pop("JAX, jit, fp32") is None  # it was told to leave JAX out
    assert all(seconds > 0 for seconds in steps.values())


def test_images_that_are_carried_in_parts_are_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    carry = importlib.import_module("carry")
    draw = np.random.default_rng(0)
    shapes = {
        "x_train": (1203, 8, 8, 3),
        "y_train": (1203,),
        "x_test": (7, 8, 8, 3),
        "y_test": (7,),
    }
    drawn = {
        k: draw.integers(256 if k[0] == "x" else 2, size=s, dtype=np.uint8)
        for k, s in shapes.items()
    }
    arrays = Arrays(**drawn, class_names=("a", "b"))
    carry.pack(arrays, tmp_path, 2)
    parts = [sorted(p.suffix for p in (tmp_path / n).iterdir()) for n in "12"]
    assert parts == [[".json", ".webp", ".webp"], [".webp", ".webp"]]
    found = carry.unpack(tmp_path)
    assert found.class_names == arrays.class_names
    assert all(np.array_equal(v, found.named()[k]) for k, v in arrays.named().items())


def test_gpu_sh_knows_its_parts():
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "stp"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no part is called stp" in done.stderr


def result(tmp_path, name, **differing):
    base = {
        "benchmark": "b", "device": "a CPU", "torch": "2", "date": "2026-01-01",
        "rows": [{"mode": "ours", "steps": 5, "seconds": 2.0}, {"mode": "theirs", "seconds": 8.0}],
    }  # fmt: skip
    (tmp_path / name).write_text(json.dumps(base | differing))
    return tmp_path / name


def test_ratios_are_of_rows_of_one_name_and_what_else_differs_is_said(tmp_path):
    old = result(tmp_path, "old.json")
    rows = [{"mode": "theirs", "seconds": 6.0}, {"mode": "ours", "steps": 5, "seconds": 1.0},
            {"mode": "new", "seconds": 1.0}]  # fmt: skip
    new = result(tmp_path, "new.json", rows=rows, device="another CPU")
    done = compared(old, new)
    assert done.returncode == 0, done.stderr
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if "│" in line}
    assert lines["rows/ours 5/seconds"].split("│")[-2].strip() == "0.500"
    assert lines["rows/theirs/seconds"].split("│")[-2].strip() == "0.750"
    assert "missing" in lines["rows/new/seconds"]
    assert "device: a CPU -> another CPU" in done.stdout


def test_what_cannot_be_compared_is_refused(tmp_path, rehearsed):
    old = result(tmp_path, "old.json", benchmark="another")
    refused = compared(old, result(tmp_path, "new.json"))
    assert refused.returncode != 0
    assert "results of another and of b" in refused.stderr
    refused = compared("no-such-revision", rehearsed["cure_step"])
    assert refused.returncode != 0
    assert "no file, and no revision" in refused.stderr
