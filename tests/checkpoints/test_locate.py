"""Finding checkpoints: by path, folder and shipped name."""

from __future__ import annotations

import pytest
import torch
from cards import CARD

from funcrobust import checkpoints
from funcrobust.checkpoints import locate
from funcrobust.core.errors import FuncrobustError


def test_the_suffix_and_the_folder_may_be_left_out(tmp_path, network):
    path = checkpoints.save(tmp_path / "v1.5" / "net", network.state_dict(), CARD)
    assert path == tmp_path / "v1.5" / "net.safetensors"
    assert checkpoints.resolve(tmp_path / "v1.5" / "net") == path
    run = checkpoints.save(tmp_path, network.state_dict(), CARD)
    assert run == tmp_path / "checkpoint.safetensors"
    assert checkpoints.resolve(tmp_path) == run


@pytest.fixture
def shelf(tmp_path, monkeypatch, network):
    folder = tmp_path / "shelf"
    checkpoints.save(folder / "cifar10-tiny.safetensors", network.state_dict(), CARD)
    monkeypatch.setattr(locate, "_shipped_folders", lambda: (folder,))
    return folder


def test_shipped_names(shelf):
    assert checkpoints.shipped() == {"cifar10-tiny": shelf / "cifar10-tiny.safetensors"}
    assert checkpoints.load("cifar10-tiny")[1] == CARD


def test_a_missing_file_lists_what_there_is(shelf):
    with pytest.raises(FuncrobustError, match=r"did you mean 'cifar10-tiny'.*shipped") as caught:
        checkpoints.load("cifar10-tinny")
    assert "\n" not in str(caught.value)
    (shelf / "run").mkdir()
    (shelf / "run" / "log.txt").touch()
    with pytest.raises(FuncrobustError, match=r"no checkpoint.safetensors in .*log.txt"):
        checkpoints.resolve(shelf / "run")


def test_the_projects_own_checkpoints_all_load():
    for name in checkpoints.shipped():
        network, card = checkpoints.load(name)
        assert network(torch.rand(1, *card.image_shape)).shape == (1, card.num_classes)


def test_a_name_that_ends_in_a_slash_is_a_folder(tmp_path, network):
    path = checkpoints.save(f"{tmp_path}/new/", network.state_dict(), CARD)
    assert path == tmp_path / "new" / "checkpoint.safetensors"
    checkpoints.load(f"{tmp_path}/new/")
