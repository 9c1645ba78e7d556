"""From a file to a network: the right one, ours or another library's, and no code by itself."""

from __future__ import annotations

import collections
import dataclasses
import types

import pytest
import torch
from cards import CARD, same
from pickles import WRITERS
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.core.errors import FuncrobustError


def test_another_architecture_is_named_in_one_line(tmp_path, network):
    card = dataclasses.replace(CARD, model="preact-small")
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card)
    with pytest.raises(FuncrobustError, match=r"of another shape.*instead of") as caught:
        checkpoints.load(path)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert "\n" not in str(caught.value)
    card = dataclasses.replace(CARD, model="preact-resnet18")
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card)
    with pytest.raises(FuncrobustError, match=r"\d+ missing \(net\.layer1\.1\.bn1\.weight, "):
        checkpoints.load(path)


def test_a_file_does_not_choose_which_code_is_called(tmp_path, monkeypatch):
    """A card may name any importable function; only the caller may agree to it."""
    (tmp_path / "own_code.py").write_text(
        "import pathlib\nfrom torch import nn\npathlib.Path('ran').touch()\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    card = dataclasses.replace(CARD, model="own_code:net")
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    weights = models.Normalized(net, CARD.mean, CARD.std).state_dict()
    path = checkpoints.save("n", weights, card)
    with pytest.raises(FuncrobustError, match="if you trust it"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()
    loaded, _ = checkpoints.load(path, model="own_code:net")
    assert same(loaded.state_dict(), weights)
    with pytest.raises(FuncrobustError, match=r"needs the code .own_code:net., not .preact-tiny."):
        checkpoints.load(path, model="preact-tiny")


def attacker_model(network, wrapper="module."):
    """The state dict of robustness's AttackerModel around a network, as its trainer saves it."""
    normalizer = {
        "new_mean": torch.tensor([0.4, 0.5, 0.6])[:, None, None],
        "new_std": torch.tensor([0.2, 0.3, 0.4])[:, None, None],
    }
    weights = network.state_dict()
    names = collections.OrderedDict()
    names.update({f"{wrapper}normalizer.{n}": t for n, t in normalizer.items()})
    names.update({f"{wrapper}model.{n}": t for n, t in weights.items()})
    names.update({f"{wrapper}attacker.normalize.{n}": t for n, t in normalizer.items()})
    names.update({f"{wrapper}attacker.model.{n}": t for n, t in weights.items()})
    return names


@pytest.mark.parametrize("writer", ["legacy-dill", "zip-dill", "dill"])
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod."])
def test_a_madry_lab_file_is_imported(tmp_path, writer, wrapper):
    source = models.build("preact-tiny", num_classes=7, seed=5).eval()
    local = 0.1

    class Schedule:
        def __init__(self):
            self.function = lambda epoch: local * epoch

        def __len__(self):
            return 3

    content = {
        "model": attacker_model(source.net, wrapper),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "schedule": Schedule(),
        "lambda": lambda epoch: epoch // 50,
        "kinds": [Schedule, types.SimpleNamespace(a={1, 2}), collections.Counter("abc")],
        "epoch": 150,
    }
    path = tmp_path / "cifar_l2_0_5.pt"
    WRITERS[writer](content, path)
    tensors = checkpoints.read_foreign(path)
    assert tensors["normalizer.new_mean"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    bare = {n: t for n, t in tensors.items() if not n.startswith("normalizer.")}
    assert same(bare, source.net.state_dict())

    with pytest.raises(FuncrobustError, match="pass model="):
        checkpoints.load(path)
    loaded, card = checkpoints.load(path, model="preact-tiny")
    assert card.num_classes == 7
    assert card.mean == pytest.approx((0.4, 0.5, 0.6))
    assert "from the file" in card.notes
    x = torch.rand(2, 3, 32, 32)
    mean, std = (tensors[f"normalizer.new_{k}"][None] for k in ("mean", "std"))
    torch.testing.assert_close(loaded(x), source.net((x - mean) / std))
    checkpoints.save(tmp_path / "mine", loaded.state_dict(), card)
    assert same(checkpoints.load(tmp_path / "mine")[0].state_dict(), loaded.state_dict())


def test_robustness_itself_writes_the_names_we_strip():
    """An oracle for `attacker_model`: the library's own class around its own network."""
    library = models.import_robustness("attacker")
    dataset = types.SimpleNamespace(mean=torch.full((3,), 0.4), std=torch.full((3,), 0.2))
    network = models.build("preact-tiny")
    theirs = library.AttackerModel(network.net, dataset).state_dict()
    ours = attacker_model(network.net, wrapper="")
    assert list(theirs) == list(ours)
    assert [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]


def test_a_foreign_file_in_whatever_order(tmp_path):
    """The sizes are those of the first layer and of the last, not of what comes first or last."""
    net = models.build("preact-tiny", num_classes=7, in_channels=1).net
    for order in (reversed, sorted):
        state = {name: net.state_dict()[name] for name in order(list(net.state_dict()))}
        torch.save(state, tmp_path / "t.pt")
        loaded, card = checkpoints.load(tmp_path / "t.pt", model="preact-tiny")
        assert same(loaded.net.state_dict(), net.state_dict())
        assert (card.image_shape[0], card.num_classes) == (1, 7)


def test_a_foreign_file_of_another_network(tmp_path, network):
    torch.save(network.net.state_dict(), tmp_path / "t.pt")
    with pytest.raises(FuncrobustError, match="does not hold the weights of a preact-resnet18"):
        checkpoints.load(tmp_path / "t.pt", model="preact-resnet18")
    loaded, card = checkpoints.load(tmp_path / "t.pt", model="preact-tiny")
    assert "assumed" in card.notes
    assert same(loaded.state_dict(), network.state_dict())


def test_our_own_state_dict_saved_by_torch(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "t.pt")
    loaded, _ = checkpoints.load(tmp_path / "t.pt", model="preact-tiny")
    assert same(loaded.state_dict(), network.state_dict())


def test_a_checkpoint_of_ours_may_look_into_the_mirror():
    """By the name of its network and -flip: the mean of both logits, and a card of its own."""
    plain, card = checkpoints.load("cifar10-linf-tiny")
    both, told = checkpoints.load("cifar10-linf-tiny", model=f"{card.model}-flip")
    x = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = (plain(x) + plain(x.flip(-1))) / 2
        assert torch.allclose(both(x), mean, atol=1e-5)
        assert not torch.allclose(both(x), plain(x), atol=1e-2)
    assert told.model == f"{card.model}-flip"
    assert (told.metrics, told.sha256, told.fingerprint) == ({}, "", ())
    assert (told.epsilon, told.command) == (card.epsilon, "")
    assert (
        told.notes
        == "the weights of cifar10-linf-tiny.safetensors, and the mean of both mirror images"
    )


@pytest.mark.parametrize(
    "model", ["preact-small-flip", "preact-tiny-silu", "preact-tiny-flip-flip"]
)
def test_but_it_is_no_other_network(model):
    with pytest.raises(FuncrobustError, match=f"holds a preact-tiny, not a {model}: leave"):
        checkpoints.load("cifar10-linf-tiny", model=model)
