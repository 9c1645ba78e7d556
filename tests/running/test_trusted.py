"""Which code and data checkpoints are told: each its own, and all that is missing in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cards import CARD
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.commands.apply.options import Apply
from funcrobust.commands.generate import Generate
from funcrobust.commands.runs.options import Runs
from funcrobust.core.errors import FuncrobustError
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import load_all
from funcrobust.running.groups import Images
from funcrobust.running.trusted import require_said, shared_out

CODE = """
from torch import nn
class Own(nn.Sequential):
    normalized = True
def deep(): return Own(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 10))
def flat(): return Own(nn.Flatten(), nn.Linear(12, 10))
"""

NETWORKS = {
    "deep": nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 10)),
    "flat": nn.Sequential(nn.Flatten(), nn.Linear(12, 10)),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two factories, a checkpoint of each, and a file that says nothing."""
    (tmp_path / "two_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    for name, network in NETWORKS.items():
        card = replace(CARD, model=f"two_nets:{name}", dataset="own.npz")
        checkpoints.save(f"{name}.safetensors", network.state_dict(), card)
    torch.save(NETWORKS["flat"].state_dict(), "says_nothing.pt")


def loaded(*names, models=(), dataset="digits"):
    files = [name if "." in name else f"{name}.safetensors" for name in names]
    images = Images(dataset=dataset)
    found = load_all(files, torch.device("cpu"), Reporter(), models=models, images=images)
    return [classifier.card.model for classifier in found]


BOTH = ("two_nets:flat", "two_nets:deep")


@pytest.mark.usefixtures("here")
def test_each_takes_its_own_of_several():
    assert loaded("deep", "flat", models=BOTH) == ["two_nets:deep", "two_nets:flat"]
    assert loaded("flat", "says_nothing.pt", models=BOTH[:1]) == ["two_nets:flat"] * 2


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("names", "models", "said"),
    [
        (["deep", "says_nothing.pt"], BOTH, "says_nothing.pt does not say which network it is, "),
        (["deep"], BOTH, "--model two_nets:flat does nothing here: no checkpoint is of it"),
        (["deep", "flat"], BOTH[:1], "say --model two_nets:flat --model two_nets:deep"),
        (["deep"], BOTH[:1], "needs the code 'two_nets:deep', not 'two_nets:flat'"),
    ],
)
def test_what_fits_none_is_refused(names, models, said):
    with pytest.raises(FuncrobustError) as caught:
        loaded(*names, models=models)
    assert said in str(caught.value)


@pytest.mark.usefixtures("here")
def test_all_that_is_missing_is_asked_for_at_once():
    with pytest.raises(FuncrobustError) as caught:
        loaded("deep", "flat", dataset=None)
    flags = "--model two_nets:deep --model two_nets:flat --dataset own.npz"
    assert str(caught.value).endswith(f"say {flags}")
    with pytest.raises(FuncrobustError, match=f"say {flags}$".replace(".", r"\.")):
        loaded("deep", "flat", dataset=None, models=BOTH[1:])
    with pytest.raises(FuncrobustError, match=r"needs the code 'two_nets:deep': if you trust it"):
        loaded("deep")


@pytest.mark.parametrize(
    "options", [lambda m: Generate(model=m), lambda m: Apply(task="sketch", model=m),
                lambda m: Runs(folders=("a", "b"), model=m)],
)  # fmt: skip
def test_one_of_them_is_said_once(options):
    assert options(BOTH).model == BOTH
    with pytest.raises(FuncrobustError, match="--model a:b is there twice"):
        options(("a:b", "a:b"))


@pytest.mark.usefixtures("here")
def test_of_several_none_is_ignored():
    """What no checkpoint is of is refused, and what says itself is not taken for unsaid."""
    card = replace(CARD, model="preact-tiny", dataset="cifar10")
    network = models.build("preact-tiny")
    checkpoints.save("tiny.safetensors", network.state_dict(), card)
    both = ["two_nets:flat", "preact-tiny"]
    assert shared_out(both, ["flat.safetensors", "tiny.safetensors"]) == both
    for models_ in (["nonsense", "rubbish"], ["preact-tiny", "rubbish"]):
        with pytest.raises(FuncrobustError, match="--model rubbish does nothing here"):
            shared_out(models_, ["tiny.safetensors"])


@pytest.mark.usefixtures("here")
def test_what_was_said_already_is_said_again_in_the_line():
    """Which can be taken as it stands."""
    with pytest.raises(FuncrobustError, match="--model two_nets:flat --model two_nets:deep"):
        require_said(["flat.safetensors", "deep.safetensors"], BOTH[:1], Images(dataset="digits"))


def test_networks_that_look_into_the_mirror_are_each_its_own():
    models_ = ("preact-tiny-flip", "preact-small-silu-flip", "preact-small-silu")
    tiny, psi, small = "cifar10-linf-tiny", "cifar10-psi-small", "cifar10-linf-small"
    assert shared_out(models_[:1], [tiny]) == ["preact-tiny-flip"]
    assert shared_out(models_[:2], [psi, tiny]) == ["preact-small-silu-flip", "preact-tiny-flip"]
    assert shared_out((models_[0], models_[2]), [small, tiny]) == [models_[2], models_[0]]
