"""Networks of RobustBench's zoo: the functional form of its own classes gives their logits."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import funcrobust as fr
from funcrobust import models
from funcrobust.core.errors import FuncrobustError
from funcrobust.models import robustbench_zoo

pytest.importorskip("timm")  # robustbench brings it


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Wong2020Fast", "Wong2020FastNet"),
        ("Rade2021Helper_R18_ddpm", "DMPreActResNet"),  # SiLU, its normalisation no buffer
        ("Debenedetti2022Light_XCiT-S12", "Sequential"),  # timm's, with attention
    ],
)
def test_a_functional_network_is_the_zoos_own_module(name, kind):
    """Its logits in float64, and its gradient in the images, by PyTorch's ordinary backward."""
    built = models.build(f"robustbench:{name}", seed=1)
    network = robustbench_zoo.zoo_entry(f"robustbench:{name}").make().eval()
    network.load_state_dict(built.state_dict())
    assert type(network).__name__ == kind
    draws = torch.Generator().manual_seed(0)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1, generator=draws)
        norm.running_var.uniform_(0.5, 2, generator=draws)
    x = torch.rand(2, 3, 32, 32, generator=draws).requires_grad_()
    y = torch.tensor([1, 7])
    built.load_state_dict(network.state_dict())
    network, built, x = network.double(), built.double(), x.detach().double().requires_grad_()
    model = fr.functionalize(built)
    logits = network(x)
    assert logits.shape == (2, 10)
    assert logits.std() > 1e-3, "logits that say nothing"
    torch.testing.assert_close(model.predict(model.params, x), logits, rtol=1e-10, atol=1e-10)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    loss = fr.cross_entropy(model.predict)
    found = torch.func.grad(lambda x: loss(model.params, x, y).sum())(x.detach())
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-9)


def test_a_seed_says_which_weights():
    first, again, other = (models.build("robustbench:Wong2020Fast", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_every_entry_has_an_address_or_is_refused():
    found, refused = 0, []
    for (dataset, threat), table in robustbench_zoo._tables().items():
        for name in table if threat != "corruptions_3d" else ():
            try:
                entry = robustbench_zoo.zoo_entry(f"robustbench:{dataset}/{threat}/{name}")
            except fr.FuncrobustError as error:
                refused.append((name, str(error)))
            else:
                found += 1
                assert entry.address.startswith("https://")
                assert not entry.address.endswith(("None", "="))
    assert found > 150
    assert all("ensemble" in why or "torchvision's" in why for _, why in refused)


def test_the_package_is_left_to_be_imported_whole():
    """The zoo is imported beside its package's ``__init__``, of which no bare one may stay."""
    robustbench_zoo._tables()
    package = sys.modules.get("robustbench")
    assert package is None or hasattr(package, "load_model")


def test_a_library_that_another_has_written_over_is_refused(tmp_path, monkeypatch):
    """torchattacks' wheel brings an old copy of robustbench's files."""
    whole, over = tmp_path / "utils.py", tmp_path / "model_zoo.py"
    whole.write_text("a = 1\n")
    over.write_text("b = 1\n")

    def files(name):
        assert name == "robustbench"
        found = []
        for path, content in ((whole, b"a = 1\n"), (over, b"b = 2\n")):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            file = importlib.metadata.PackagePath(path.name)
            file.hash = importlib.metadata.FileHash(f"sha256={digest.decode()}")
            file.dist = SimpleNamespace(locate_file=lambda path: tmp_path / path)
            found.append(file)
        return found

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(FuncrobustError, match=r"model_zoo\.py is not robustbench's own.*reinstall"):
        robustbench_zoo.zoo_entry("robustbench:Wong2020Fast")
    over.write_text("b = 2\n")
    assert robustbench_zoo.zoo_entry("robustbench:Wong2020Fast")
