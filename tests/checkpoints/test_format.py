"""Our checkpoints: exact round trips, cards that are checked, damage that is found."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import safetensors.torch
import torch
from cards import CARD, same
from torch import nn

from funcrobust import checkpoints
from funcrobust.core.errors import FuncrobustError


def test_round_trip_to_the_bit(saved, network):
    loaded, card = checkpoints.load(saved)
    assert card == CARD
    assert not loaded.training
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.state_dict()["net.bn.num_batches_tracked"] == 1
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))


def test_the_card_is_inside_and_beside(saved):
    beside = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert beside["class_names"][:2] == ["airplane", "Käfer"]
    saved.with_suffix(".json").unlink()
    assert checkpoints.read(saved)[1] == CARD
    assert set(beside["versions"]) == {"torch", "funcrobust"}
    assert beside["created"].endswith("+00:00")


def test_half_precision_files_load_as_float32(tmp_path, network):
    half = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    path = checkpoints.save(tmp_path / "half.safetensors", half, CARD)
    tensors, _ = checkpoints.read(path)
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(tensors[n], half[n].to(tensors[n].dtype)) for n in half)
    loaded, _ = checkpoints.load(path)
    assert loaded(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_layouts_and_shared_memory(tmp_path):
    base = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "tied": base,
        "tied_again": base,
        "view": base[0],
        "expanded": torch.ones(1).expand(4),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    read, _ = checkpoints.read(checkpoints.save(tmp_path / "t", tensors, CARD))
    assert all(torch.equal(read[n], tensors[n]) for n in tensors)
    assert len(read) == len(tensors)


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_truncated_files(saved, part):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * part) if isinstance(part, float) else part])
    with pytest.raises(FuncrobustError, match=r"net\.safetensors is truncated or not a"):
        checkpoints.load(saved)


@pytest.mark.parametrize("data", [b"\xff" * 100, b"hello, this is text", pickle.dumps({"a": 1})])
def test_files_of_another_kind(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FuncrobustError, match="not a safetensors file"):
        checkpoints.read(path)


def test_no_card(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(FuncrobustError, match="no card inside"):
        checkpoints.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "3", "[]", "{}", "{", '{"model": "preact-tiny"}', "[" * 100_000]
    + [
        json.dumps({**dataclasses.asdict(CARD), **change})
        for change in (
            {"num_classes": "ten"},
            {"model": 3},
            {"image_shape": [3, 32]},
            {"image_shape": None},
            {"mean": [0.5]},
            {"std": ["a", "b", "c"]},
            {"metrics": [1]},
        )
    ],
)
def test_cards_that_are_none(tmp_path, text):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"funcrobust.card": text})
    with pytest.raises(FuncrobustError, match=r"w\.safetensors has a card that is not one"):
        checkpoints.load(path)


def test_a_later_versions_card_is_understood(tmp_path):
    text = json.dumps({**dataclasses.asdict(CARD), "colour": "blue"})
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"funcrobust.card": text})
    assert checkpoints.read(path)[1] == CARD


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(tmp_path, network, value):
    broken = {**network.state_dict(), "net.bn.weight": torch.full((128,), value)}
    with pytest.raises(FuncrobustError, match=r"net\.bn\.weight"):
        checkpoints.save(tmp_path / "n", broken, CARD)
    assert list(tmp_path.iterdir()) == []
    metadata = {"funcrobust.card": json.dumps(dataclasses.asdict(CARD))}
    safetensors.torch.save_file(broken, tmp_path / "n.safetensors", metadata)
    with pytest.raises(FuncrobustError, match=r"net\.bn\.weight"):
        checkpoints.load(tmp_path / "n")


def test_what_json_cannot_hold(tmp_path):
    for metrics in ({"clean": float("nan")}, {"clean": "x" and object()}):
        with pytest.raises(FuncrobustError, match="finite numbers"):
            checkpoints.save(tmp_path / "n", {}, dataclasses.replace(CARD, metrics=metrics))
    card = dataclasses.replace(CARD, metrics={"clean": torch.tensor(0.5)})  # type: ignore[dict-item]
    assert checkpoints.read(checkpoints.save(tmp_path / "n", {}, card))[1].metrics == {"clean": 0.5}


def test_tensors_without_values(tmp_path):
    with pytest.raises(FuncrobustError, match="cannot write"):
        checkpoints.save_state(tmp_path / "n", {"w": torch.empty(2, device="meta")}, {})
