"""Networks by name: found in their families' tables, normalised, and the same for a seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from funcrobust import models
from funcrobust.core.errors import FuncrobustError
from funcrobust.models.registry import is_factory, names_code


def test_a_new_family_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "toy_family.py").write_text(
        "from torch import nn\n"
        "from funcrobust.models.network import Network\n"
        "def toy(*, num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16 * in_channels, num_classes))\n"
        "NETWORKS = {'toy': Network(toy, image_size=4, num_classes=7)}\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert "toy" in models.names()
    assert models.usual_image_size("toy") == 4
    assert models.build("toy", in_channels=2)(torch.rand(3, 2, 4, 4)).shape == (3, 7)


def test_no_two_families_have_a_network_of_one_name():
    from funcrobust.models import madry, preact_resnet, resnet, wide_resnet

    tables = [family.NETWORKS for family in (madry, preact_resnet, resnet, wide_resnet)]
    assert sorted(name for table in tables for name in table) == list(models.names())


@pytest.mark.parametrize(
    ("name", "shapes", "total", "size"),
    [
        ("preact-tiny", "ce51c89e03a4", 478.6496705967974, 7388.78),
        ("preact-tiny-silu", "ce51c89e03a4", 478.6496705967974, 7388.78),
        ("preact-small", "bdd5d40c064e", 963.823947727823, 19901.4),
        ("preact-medium-silu", "16fe1ae6a746", 1450.2752604528066, 35800.8),
        ("preact-resnet18", "93718d92c124", 3917.0974281429676, 112503.6),
        ("wrn-28-10", "c7a7564e52f5", 8940.870221685971, 635650.2),
        ("robustness-resnet18", "cb7e38fdc404", 4813.097428142968, 114295.6),
        ("robustness-imagenet-resnet18", "0b5f46e6dde2", 4785.280936896566, 240702.5),
    ],
)
def test_a_seed_means_the_same_weights_as_ever(name, shapes, total, size):
    """Runs are resumed and figures compared across versions.

    Names and shapes are exact. Of the values a weighted sum, to 1e-6 of the sum of their sizes:
    processors differ in the last bits of a normal random number.
    """
    state = models.build(name, seed=5).state_dict()
    named = repr([(n, tuple(t.shape)) for n, t in state.items()])
    assert hashlib.sha256(named.encode()).hexdigest()[:12] == shapes
    values = [t.double().flatten() for t in state.values()]
    found = sum(float(v @ torch.linspace(0, 1, len(v), dtype=torch.float64)) for v in values)
    assert found == pytest.approx(total, abs=1e-6 * size)


def test_normalisation_equals_doing_it_outside():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    network = models.build("preact-tiny", mean=mean, std=std).eval()
    x = torch.rand(4, 3, 32, 32)
    outside = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(network(x), network.net(outside), rtol=0, atol=0)
    assert network.state_dict()["mean"].shape == (1, 3, 1, 1)


def test_default_normalisation_is_cifar10s():
    network = models.build("preact-tiny")
    assert network.mean.flatten().tolist() == pytest.approx(models.CIFAR10_MEAN)
    assert network.std.flatten().tolist() == pytest.approx(models.CIFAR10_STD)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = models.build("preact-tiny", seed=3).state_dict()
    torch.manual_seed(2)
    torch.rand(5)
    second = models.build("preact-tiny", seed=3).state_dict()
    other = models.build("preact-tiny", seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.conv1.weight"], other["net.conv1.weight"])


def test_the_callers_random_state_is_untouched():
    before = torch.get_rng_state()
    models.build("preact-tiny", seed=9)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_starts_in_training_mode():
    assert models.build("preact-tiny").training


def test_images_with_other_channels_are_refused_not_broadcast():
    with pytest.raises(FuncrobustError, match="in_channels"):
        models.build("preact-tiny")(torch.rand(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"seed": -1}, "seed"),
        ({"mean": (0.5,)}, "each of 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "std positive"),
        ({"mean": (0.5, 0.5, float("nan"))}, "finite"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(FuncrobustError, match=message):
        models.build("preact-tiny", **arguments)


def test_unknown_name_suggests_and_lists():
    with pytest.raises(FuncrobustError, match=r"did you mean 'preact-tiny'.*wrn-28-10"):
        models.build("preact-tinny")


def test_importing_models_is_light():
    code = (
        "import sys, funcrobust.models\n"
        "assert not {'torchvision', 'robustness', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "code", "factory"),
    [("preact-tiny", False, False), ("my.nets:make", True, True), ("robustbench:X", True, False)],
)
def test_what_a_name_means(name, code, factory):
    assert (names_code(name), is_factory(name)) == (code, factory)
