"""What processes of torchrun tell one another."""

from __future__ import annotations

import pytest
import torch
from sharing import told
from two_processes import on_two

import funcrobust as fr
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.core.shards import Shard
from funcrobust.running.processes import Processes, is_loss_of_another, processes, started


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


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer", True),
        ("[pair.cc:468] writev [127.0.0.1]:4711: Broken pipe", True),
        ("[pair.cc:547] Read error [127.0.0.1]:4711: Connection reset by peer", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)  # fmt: skip
def test_what_is_left_to_see_of_a_process_that_ended(monkeypatch, said, lost):
    error = RuntimeError(said)
    assert not is_loss_of_another(error), "alone nobody can be lost"
    monkeypatch.setattr("funcrobust.running.processes._here", Processes(Shard(0, 2, "0")))
    assert is_loss_of_another(error) == lost
