"""The state of a run: every precision, to the bit."""

from __future__ import annotations

import pytest
import torch
from cards import same
from safetensors.torch import save_file

from funcrobust import checkpoints
from funcrobust.core.errors import FuncrobustError


def test_state_round_trip_keeps_every_precision(tmp_path):
    tensors = {
        "params/w": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(5).double(),
        "step": torch.tensor(12),
        "seen": torch.tensor([True, False]),
        "limit": torch.tensor(float("inf")),
    }
    meta = {"step": 12, "lr": 0.1 + 0.2, "history": [{"epoch": 1, "loss": 2.5}], "name": "ψ"}
    path = checkpoints.save_state(tmp_path / "state.safetensors", tensors, meta)
    read, read_meta = checkpoints.load_state(path)
    assert same(read, tensors)
    assert read_meta == meta
    assert checkpoints.load_state(tmp_path)[1] == meta


def test_a_state_can_be_replaced_while_what_it_held_is_in_use(tmp_path):
    path = checkpoints.save_state(tmp_path / "s", {"w": torch.ones(3)}, {"step": 1})
    old, _ = checkpoints.load_state(path)
    checkpoints.save_state(path, {"w": torch.zeros(3)}, {"step": 2})
    old["w"] += 1
    assert old["w"].tolist() == [2, 2, 2]
    assert checkpoints.load_state(path)[0]["w"].tolist() == [0, 0, 0]


def test_a_checkpoint_is_not_a_state_nor_the_reverse(saved, tmp_path):
    with pytest.raises(FuncrobustError, match="not the state of a run"):
        checkpoints.load_state(saved)
    state = checkpoints.save_state(tmp_path / "s", {}, {})
    with pytest.raises(FuncrobustError, match="no card inside"):
        checkpoints.read(state)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", '{"meta": 1}', '{"meta": {"step": []}}'])
def test_a_damaged_state_is_no_step(tmp_path, text):
    path = tmp_path / "state.safetensors"
    save_file({"w": torch.ones(1)}, path, {"funcrobust.state": text})
    assert checkpoints.step_of(path) is None
    with pytest.raises(FuncrobustError):
        checkpoints.load(path)
