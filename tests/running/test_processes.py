"""What processes of torchrun tell one another; and the same figures from two as from one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sharing import told
from two_processes import on_two

import funcrobust as fr
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.running.processes import processes, started

CLI = Path(__file__).parents[2] / "cli.py"


def test_alone():
    here = processes()
    assert (here.rank, here.size, here.first) == (0, 1, True)
    rows = torch.arange(5)
    assert here.own(rows) is not None
    assert torch.equal(here.together(here.own(rows), 5), rows)
    assert here.same("word") == "word"
    assert here.any(True)
    assert not here.any(False)


def test_two():
    """Rows of every type come back in their order, also where the parts are unequal."""
    for rank, found in enumerate(on_two(told)):
        assert found["first"] == (rank == 0)
        assert found["same"] == "of 0"
        assert found["any"] == (True, False)
        for rows in found["rows"]:
            assert torch.equal(*rows)
            assert rows[0].dtype == rows[1].dtype


def test_what_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    class Alone(Evaluate):
        shared = False

    with pytest.raises(fr.FuncrobustError, match="alone is for one process: start it without"):
        started(Alone()).__enter__()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(fr.FuncrobustError, match="WORLD_SIZE is 'two'"):
        started(Evaluate()).__enter__()


def test_two_processes_evaluate_as_one(digits_run, tmp_path):
    """An odd number of images, by ``torchrun`` itself: the same figures, images, fallen."""

    def evaluate(name, *launcher):
        words = [
            str(CLI), "evaluate", str(digits_run[0]), "--examples", "25", "--steps", "5",
            "--epsilon", "0.2", "--no-checks", "--no-page", "--save", f"{name}.safetensors",
            "--json", f"{name}.json",
        ]  # fmt: skip
        given = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *launcher, *words], cwd=tmp_path, env=given, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("95 % interval") == 1, "the first alone talks"
        figures = json.loads((tmp_path / f"{name}.json").read_text())
        return figures | {"seconds": 0}, load_file(tmp_path / f"{name}.safetensors")

    alone = evaluate("one")
    two = evaluate("two", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert two[0] == alone[0]
    assert two[0]["robust"] < two[0]["clean"]
    for name, tensor in alone[1].items():
        torch.testing.assert_close(two[1][name], tensor)
