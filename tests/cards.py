"""Networks with their cards, and when two sets of weights, or of logits, are the same."""

from __future__ import annotations

import torch
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.checkpoints import Card

CARD = Card(
    model="preact-tiny",
    num_classes=10,
    image_shape=(3, 32, 32),
    mean=models.CIFAR10_MEAN,
    std=models.CIFAR10_STD,
    dataset="cifar10",
    class_names=("airplane", "Käfer", *"cdefghij"),
    command="python cli.py train --seed 3",
    seed=3,
    metrics={"clean": 0.5123, "pgd50x10": 0.29},
)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # nobody's defaults


def network(name, classes=10, **kwargs):
    """An untrained network and its card, its batch-norm statistics moved."""
    module = models.build(name, num_classes=classes, **kwargs).eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.0)
    size = models.usual_image_size(name)
    card = Card(
        model=name, num_classes=classes, image_shape=(3, size, size), dataset="none",
        mean=tuple(module.mean.flatten().tolist()), std=tuple(module.std.flatten().tolist()),
    )  # fmt: skip
    return module, card


def images(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def require_same_logits(ours, theirs, size=32):
    x = images(size)
    with torch.no_grad():
        expected, found = ours(x), theirs(x)
    assert expected.std() > 1e-3, "logits that say nothing"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def require_same_tensors(path, name, module):
    loaded, card = checkpoints.load(path, model=name)
    expected = module.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in loaded.state_dict().items())
    return card
