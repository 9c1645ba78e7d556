"""Networks in the files of the Madry lab and of robustbench's zoo, read from every form."""

from __future__ import annotations

import os

import dill
import pytest
import torch
from cards import MEAN, STD, images, network, require_same_logits, require_same_tensors
from pickles import Payload
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.core.errors import FuncrobustError


def as_trained(module, mark):
    """What robustness's trainer saves: its classes and closures around the weights."""
    library = models.import_robustness("attacker")
    parameters = pytest.importorskip("cox.utils").Parameters
    dataset = models.import_robustness("datasets").CIFAR()
    dataset.mean, dataset.std = torch.tensor(MEAN), torch.tensor(STD)
    attacker = nn.DataParallel(library.AttackerModel(module.net, dataset))

    class Schedule:
        step = staticmethod(lambda epoch: 0.1 * epoch)

    return {
        "model": attacker.state_dict(),
        "optimizer": torch.optim.SGD(attacker.parameters(), 0.1, 0.9).state_dict(),
        "schedule": Schedule(),
        "args": parameters({"arch": "resnet18", "eps": 0.5, "custom_lr": lambda epoch: epoch}),
        "dataset": dataset,
        "hook": Payload(os.system, f"touch {mark}"),
        "epoch": 150,
        "amp": None,
    }


def variants(module, mark):
    """The same network in every form that such files come in; a path goes to `torch.save`."""
    weights = module.net.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    old = {name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")}
    trained, hook = as_trained(module, mark), Payload(os.system, f"touch {mark}")
    return {
        "plain": (weights, {}),
        "plain-before-0.4.1": (old, {"_use_new_zipfile_serialization": False}),
        "parallel": (parallel, {}),
        "nested-state_dict": ({"state_dict": parallel, "epoch": 3, "hook": hook}, {}),
        "nested-model": ({"model": weights, "epoch": 3}, {}),
        "dill": (trained, {"pickle_module": dill}),
        "dill-legacy": (
            trained, {"pickle_module": dill, "_use_new_zipfile_serialization": False}
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "classes", "kinds"),
    [
        ("robustness-resnet18", 10, None),
        ("robustness-imagenet-resnet18", 1000, ("parallel", "dill-legacy")),
    ],
)
def test_madry_lab_files_of_every_kind_are_read_and_run_nothing(tmp_path, name, classes, kinds):
    mark = tmp_path / "mark"
    bare, _ = network(name, classes)
    trained, _ = network(name, classes, mean=MEAN, std=STD)
    size = 64 if "imagenet" in name else 32
    every = variants(trained, mark)
    for kind in kinds or every:
        content, how = every[kind]
        torch.save(content, tmp_path / "net.pt", **how)
        loaded, card = checkpoints.load(tmp_path / "net.pt", model=name)
        assert not mark.exists(), kind
        dilled = kind.startswith("dill")
        require_same_logits(trained if dilled else bare, loaded, size)
        assert (card.num_classes, card.image_shape[1]) == (classes, models.usual_image_size(name))
        assert ("from the file" in card.notes) == dilled
    torch.load(tmp_path / "net.pt", weights_only=False, pickle_module=dill)
    assert mark.exists(), "an ordinary reader does run what was in the last of them"


@pytest.mark.parametrize(
    ("name", "arch", "count"),
    [
        ("robustness-imagenet-resnet18", "resnet18", 11_689_512),
        ("robustness-imagenet-resnet50", "resnet50", 25_557_032),
        ("robustness-imagenet-wrn50-2", "wide_resnet50_2", 68_883_240),
    ],
)
def test_imagenet_networks_are_robustness_own(name, arch, count):
    dataset = models.import_robustness("datasets").ImageNet("")
    with torch.device("meta"):
        ours, theirs = models.build(name), dataset.get_model(arch, pretrained=False)
    assert type(ours.net) is type(theirs)
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes = {n: t.shape for n, t in ours.net.state_dict().items()}
    assert shapes == {n: t.shape for n, t in theirs.state_dict().items()}
    assert name in models.names()


def test_imagenet_networks_normalise_as_imagenet_does_and_take_any_size():
    dataset = models.import_robustness("datasets").ImageNet("")
    module = models.build("robustness-imagenet-resnet18").eval()
    assert module.mean.flatten().tolist() == pytest.approx(dataset.mean.tolist())
    assert module.std.flatten().tolist() == pytest.approx(dataset.std.tolist())
    for size in (32, 40):
        assert module(images(size)).shape == (2, 1000)
    assert models.build("robustness-imagenet-resnet18", num_classes=3).net.fc.out_features == 3
    with pytest.raises(FuncrobustError, match="takes RGB images only, got in_channels=1"):
        models.build("robustness-imagenet-resnet18", in_channels=1)


def test_a_factorys_own_mu_and_sigma_stay_its_own(tmp_path, monkeypatch):
    (tmp_path / "my_zoo_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    normalized = True\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(12, 10)\n"
        "        self.register_buffer('mu', torch.rand(1, 3, 1, 1))\n"
        "        self.register_buffer('sigma', torch.rand(1, 3, 1, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    module = models.build("my_zoo_net:Net", seed=3)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    require_same_tensors(tmp_path / "net.pt", "my_zoo_net:Net", module)
