"""What processes of torchrun tell one another."""

from __future__ import annotations

import pytest
import torch
from sharing import told
from two_processes import on_two

import funcrobust as fr
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.running.processes import processes, started


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


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(fr.FuncrobustError, match="here are 1: --nproc-per-node 1, or --device cpu"):
        started(Evaluate()).__enter__()
