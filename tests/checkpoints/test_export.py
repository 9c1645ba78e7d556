"""Exports: written in other libraries' form, and loaded by those libraries themselves."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import replace

import pytest
import torch
from cards import MEAN, STD, network, require_same_logits, require_same_tensors
from problems import run_cli
from torch import nn

import funcrobust
from funcrobust import checkpoints, cli, models
from funcrobust.checkpoints import Card
from funcrobust.checkpoints import export as exports
from funcrobust.checkpoints.export import export
from funcrobust.core.errors import FuncrobustError

# --- robustness ---------------------------------------------------------------------------------


@pytest.fixture
def restore(monkeypatch):
    """Run the line that `export` gives; the library calls .cuda() whatever the machine."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(nn.Module, "cuda", lambda self, *_: self)
    datasets = models.import_robustness("datasets")
    names = {
        "make_and_restore_model": models.import_robustness("model_utils").make_and_restore_model,
        "CIFAR": datasets.CIFAR, "ImageNet": datasets.ImageNet, "funcrobust": funcrobust,
        "SimpleNamespace": types.SimpleNamespace, "torch": torch,
    }  # fmt: skip

    def run(exported):
        model, checkpoint = eval(exported.load, dict(names))
        assert checkpoint["epoch"] == 0
        return lambda x: model.eval().cpu()(x.cpu(), with_image=False)

    return run


@pytest.mark.parametrize(
    ("name", "classes", "arch"),
    [
        ("robustness-resnet18", 10, "arch='resnet18', dataset=CIFAR()"),
        ("robustness-resnet18", 7, "num_classes=7, in_channels=3).net, dataset=CIFAR()"),
        ("robustness-imagenet-resnet18", 1000, "arch='resnet18', dataset=ImageNet('')"),
        ("preact-tiny-silu", 10, "add_custom_forward=True"),
    ],
)
def test_robustness_restores_what_is_exported(tmp_path, restore, name, classes, arch):
    module, card = network(name, classes, mean=MEAN, std=STD)
    exported = export(module, card, tmp_path / "net.pt")
    assert arch in exported.load
    size = 64 if "imagenet" in name else 32
    require_same_logits(module, restore(exported), size)
    again = require_same_tensors(exported.path, name, module)
    assert (again.image_shape, again.num_classes) == (card.image_shape, classes)
    assert again.mean == pytest.approx(MEAN)


def test_the_exported_names_are_those_of_robustness_itself(tmp_path):
    """In the order of its own classes, DataParallel's prefix included."""
    library = models.import_robustness("attacker")
    dataset = types.SimpleNamespace(mean=torch.tensor(MEAN), std=torch.tensor(STD))
    module, card = network("robustness-resnet18", mean=MEAN, std=STD)
    theirs = nn.DataParallel(library.AttackerModel(module.net, dataset)).state_dict()
    export(module, card, tmp_path / "net.pt")
    ours = torch.load(tmp_path / "net.pt", weights_only=True)["model"]
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    size = sum(t.numel() for t in module.state_dict().values()) * 4
    assert (tmp_path / "net.pt").stat().st_size < 1.05 * size, "the attacker's copy is shared"


def test_gray_images_go_to_robustness(tmp_path, restore):
    module = models.build("preact-tiny", in_channels=1).eval()
    card = Card("preact-tiny", 10, (1, 8, 8), (0.5,), (0.5,), "digits")
    theirs = restore(export(module, card, tmp_path / "net.pt"))
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(theirs(x), module(x), rtol=1e-5, atol=1e-5)


def test_a_network_that_normalises_by_itself_goes_to_robustness(tmp_path, restore, monkeypatch):
    (tmp_path / "my_export_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    normalized = True\n"
        "    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(12, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    module = models.build("my_export_net:Net").eval()
    card = Card("my_export_net:Net", 10, (3, 2, 2), MEAN, STD, "none")
    exported = export(module, card, tmp_path / "net.pt")
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(restore(exported)(x), module(x), rtol=1e-5, atol=1e-5)
    require_same_tensors(exported.path, card.model, module)


# --- robustbench --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "place"),
    [
        ("preact-resnet18", 10, "cifar10/L2/Rice2020Overfitting.pt"),
        ("preact-resnet18", 100, "cifar100/Linf/Rice2020Overfitting.pt"),
        ("wrn-28-10", 10, "cifar10/L2/Rony2019Decoupling.pt"),
        ("robustness-resnet18", 10, "cifar10/corruptions/Modas2021PRIMEResNet18.pt"),
        ("robustness-resnet50", 10, "cifar10/Linf/Engstrom2019Robustness.pt"),
        ("robustness-imagenet-resnet18", 1000, "imagenet/Linf/Salman2020Do_R18.pt"),
    ],
)
def test_robustbench_loads_what_is_exported(tmp_path, robustbench, name, classes, place):
    imagenet = "imagenet" in name
    module, card = network(name, classes, **({} if imagenet else {"mean": MEAN, "std": STD}))
    exported = export(module, card, tmp_path, to="robustbench")
    assert exported.path == tmp_path / place
    theirs = eval(exported.load, {"load_model": robustbench.load_model})
    require_same_logits(module, theirs, 64 if imagenet else 32)
    require_same_tensors(exported.path, name, module)


@pytest.mark.parametrize("key", exports._ZOO, ids=lambda key: f"{key[0]}-{key[1]}")
def test_every_class_of_the_zoo_has_the_names_and_shapes_of_ours(robustbench, key):
    """Without weights, so for the large ones too."""
    entry = exports._ZOO[key]
    dataset = robustbench.utils.all_models[robustbench.utils.BenchmarkDataset(entry.dataset)]
    zoo = dataset[robustbench.utils.ThreatModel(entry.threat_model)][entry.name]["model"]
    with torch.device("meta"):
        theirs, ours = zoo(), models.build(key[0], num_classes=key[1]).net
    own = ("mu", "sigma", "normalize.mean", "normalize.std")
    shapes = {n.removeprefix("model."): t.shape for n, t in theirs.state_dict().items()}
    fixed = {"normalize.mean", "normalize.std"} <= shapes.keys()
    assert fixed == (entry.normalisation is not None)
    assert fixed or {"mu", "sigma"} <= shapes.keys()
    assert {n: s for n, s in shapes.items() if n not in own} == {
        n: t.shape for n, t in ours.state_dict().items()
    }


def test_the_fixed_normalisation_is_the_zoos(robustbench):
    from robustbench.model_zoo import imagenet

    assert (imagenet.mu, imagenet.sigma) == (models.IMAGENET_MEAN, models.IMAGENET_STD)


def test_a_file_of_ones_own_name_says_where_to_put_it(tmp_path):
    module, card = network("preact-resnet18")
    exported = export(module, card, tmp_path / "mine.pt", to="robustbench")
    assert exported.path == tmp_path / "mine.pt"
    assert "after moving it to DIR/cifar10/L2/Rice2020Overfitting.pt" in exported.load
    assert "model_dir='DIR'" in exported.load


# --- refusals and files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("preact-tiny", {}, r"no class for a preact-tiny .*--to robustness.*as it is"),
        ("preact-resnet18-silu", {}, "no class for a preact-resnet18-silu"),
        ("preact-resnet18", {"num_classes": 7}, "3x32x32 images and 7 classes"),
        ("preact-resnet18", {"image_shape": (3, 64, 64)}, "3x64x64 images"),
    ],
)
def test_networks_that_robustbench_has_no_class_for(tmp_path, name, change, message):
    module, card = network(name)
    with pytest.raises(FuncrobustError, match=message) as caught:
        export(module, replace(card, **change), tmp_path, to="robustbench")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_normalisation_that_the_class_cannot_hold(tmp_path):
    module, card = network("robustness-imagenet-resnet18", 1000, mean=MEAN, std=STD)
    with pytest.raises(FuncrobustError, match=r"\(0.485, .*by \(0.4, 0.5, 0.6\) / .*--to robust"):
        export(module, card, tmp_path, to="robustbench")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "to", "message"),
    [
        ("net.pt", "foolbox", "unknown form 'foolbox'.*: choose from robustness, robustbench"),
        ("net.safetensors", "robustness", "give a name that ends in .pt"),
        ("", "robustness", "give a name that ends in .pt"),
        ("net.pth", "robustbench", "give a folder, or a name that ends in .pt"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, file, to, message):
    module, card = network("preact-resnet18")
    with pytest.raises(FuncrobustError, match=message) as caught:
        export(module, card, tmp_path / file, to=to)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    module, card = network("preact-tiny")
    (tmp_path / "net.pt").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FuncrobustError, match="cannot write"):
        export(module, card, tmp_path / "net.pt")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.pt", "old")]


def test_the_command(tmp_path, capsys, monkeypatch):
    module, card = network("preact-tiny")
    checkpoints.save(tmp_path / "mine", module.state_dict(), card)
    file = tmp_path / "theirs.pt"
    arguments = ["funcrobust", "export", str(tmp_path / "mine"), str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    assert "make_and_restore_model(" in capsys.readouterr().out
    require_same_tensors(file, "preact-tiny", module)
    monkeypatch.setattr(sys, "argv", [*arguments, "--to", "robustbench"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    assert capsys.readouterr().err.startswith("error: robustbench's zoo has no class for")


def test_what_is_there_is_replaced_with_a_word_and_the_source_never(tmp_path):
    module, card = network("preact-resnet18")
    export(module, card, tmp_path / "net.pt")
    source = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to("net.pt")
    words = ("export", "net.pt", "--model", "preact-resnet18")
    for own in ("net.pt", "link.pt"):
        refused = run_cli(*words, own, cwd=tmp_path)
        said = f"error: FILE: {own} is what CHECKPOINT reads, too: choose another file\n"
        assert (refused.returncode, refused.stderr) == (2, said)
        assert (tmp_path / "net.pt").read_bytes() == source
    replaced = "is there already, and will be replaced"
    for again in (False, True):
        done = run_cli(*words, "other.pt", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (f"other.pt {replaced}" in done.stdout) == again
    to_zoo = (*words, "zoo", "--to", "robustbench")
    place = "zoo/cifar10/L2/Rice2020Overfitting.pt"
    for again in (False, True):
        done = run_cli(*to_zoo, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (f"{place} {replaced}" in done.stdout) == again
    refused = run_cli("export", place, *to_zoo[2:], cwd=tmp_path)
    assert f"error: {place} is what is to be exported itself" in refused.stderr


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(checkpoints, "load", lambda *_, **__: pytest.fail("it began"))
    done = run_cli("export", "cifar10-linf-tiny", "file/net.pt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: FILE: cannot write file/net.pt: ")
