"""Networks of one's own, as ``package.module:factory``."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from funcrobust import checkpoints, models
from funcrobust.core.errors import FuncrobustError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder to work in, with a user's module in it."""
    (tmp_path / "my_nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        not_callable = 3
        shared = nn.Identity()
        def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        def sized(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
        def loose(**kwargs): return sized(**kwargs)
        class Net(nn.Module):
            normalized = True
            def __init__(self): super().__init__(); self.w = nn.Parameter(torch.randn(3))
        class Convolved(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
            def forward(self, x): return self.last(self.first(x).mean((2, 3)))
        def wrong(): return 7
        def broken(): raise RuntimeError("no\\nluck")
        """)
    )
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_nets", "my_broken"):
        sys.modules.pop(name, None)


def test_own_factories(own):
    path = list(sys.path)
    x = torch.rand(3, 3, 2, 2)
    plain = models.build("my_nets:plain")
    assert isinstance(plain, models.Normalized)
    assert plain(x).shape == (3, 2)
    assert models.build("my_nets:sized", num_classes=6)(x).shape == (3, 6)
    assert models.build("my_nets:loose", num_classes=6)(x).shape == (3, 6)
    assert type(models.build("my_nets:Net")).__name__ == "Net"
    assert sys.path == path


@pytest.mark.parametrize("name", ["plain", "sized", "Convolved"])
def test_weights_in_a_file_get_the_images_as_they_are(own, name, monkeypatch):
    """What was trained elsewhere is measured as it was trained: nothing is put before it."""
    monkeypatch.syspath_prepend(own)
    import my_nets

    network = getattr(my_nets, name)(**({"num_classes": 2} if name == "sized" else {}))
    torch.save(network.state_dict(), "mine.pt")
    loaded, card = checkpoints.load("mine.pt", model=f"my_nets:{name}")
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(loaded(x), network(x))
    assert (card.mean, card.std) == ((0.0,) * 3, (1.0,) * 3)
    assert "normalisation its own" in card.notes
    checkpoints.save("again.safetensors", loaded.state_dict(), card)
    again, _ = checkpoints.load("again.safetensors", model=f"my_nets:{name}")
    torch.testing.assert_close(again(x), network(x))


def test_a_wrong_guess_of_the_classes_is_named_as_one(own):
    """The last matrix of a file need not be the one that gives the logits."""
    torch.save({"1.weight": torch.rand(6, 12), "1.bias": torch.rand(6), "z": torch.eye(4)}, "a.pt")
    with pytest.raises(
        FuncrobustError,
        match=r"weights of a my_nets:sized built with num_classes=4, in_channels=3, guessed from "
        r"the file's tensors: .*\(net\.1\.weight \(6, 12\) instead of \(4, 12\)",
    ):
        checkpoints.load("a.pt", model="my_nets:sized")
    with pytest.raises(FuncrobustError) as caught:
        checkpoints.load("a.pt", model="preact-tiny")
    assert "guessed" not in str(caught.value), "ours say where their sizes are"


def test_own_factories_depend_on_the_seed_alone(own):
    weights = [models.build("my_nets:Net", seed=s).state_dict()["w"] for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets:absent", "has nothing called 'absent'"),
        ("my_nets:not_callable", "it is int"),
        ("my_nets:shared", "it is Identity"),
        ("my_nets:wrong", "returned int"),
        ("my_nets:broken", "RuntimeError: no luck"),
        ("my_broken:net", "nothing_of_this_name"),
        ("not_a_module_anywhere:net", "cannot import 'not_a_module_anywhere'"),
        (":net", "package.module:factory"),
        ("my_nets:", "package.module:factory"),
        (".my_nets:plain", "package.module:factory"),
    ],
)
def test_failing_factories_give_one_line(own, name, message):
    with pytest.raises(FuncrobustError, match=message) as caught:
        models.build(name)
    assert "\n" not in str(caught.value)
