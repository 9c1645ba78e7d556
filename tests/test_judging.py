"""Scores of made images, against closed forms and each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import funcrobust as fr
from funcrobust import judging
from funcrobust.judging import Seen
from funcrobust.models import build, representation


def cloud(n, mean, scale, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = mean + scale * torch.randn(n, d, generator=generator)
    return Seen(features, torch.zeros(n, dtype=torch.int64))


def test_frechet_distance_of_two_gaussians():
    """‖μ − μ′‖² + Σ (σ − σ′)² for independent coordinates: 4·3² + 4·(1 − 2)² = 40."""
    a, b = cloud(20_000, 0.0, 1.0), cloud(20_000, 3.0, 2.0, seed=1)
    assert judging.frechet_distance(a, b) == pytest.approx(40.0, rel=0.02)
    assert judging.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_by_hand():
    """The formula in numpy and scipy, on correlated features."""
    from scipy.linalg import sqrtm

    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    a, b = cloud(300, 0.0, 1.0), cloud(200, 0.5, 1.5, seed=1)
    b = Seen(b.features @ mix, b.labels)
    x, y = a.features.double(), b.features.double()
    covariances = torch.cov(x.T), torch.cov(y.T)
    root = torch.from_numpy(sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (
        covariances[0] + covariances[1] - 2 * root
    ).trace()
    assert judging.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_precision_and_recall():
    """Half of the real modes are made (recall ½), and all that is made is real (precision 1)."""
    near, far = cloud(200, 0.0, 1.0), cloud(200, 100.0, 1.0, seed=1)
    real = Seen(torch.cat([near.features, far.features]), torch.zeros(400, dtype=torch.int64))
    made = cloud(200, 0.0, 1.0, seed=2)
    precision, recall = judging.precision_recall(real, made)
    assert precision > 0.8
    assert recall == pytest.approx(0.5, abs=0.08)
    back = judging.precision_recall(made, real)
    assert back == (recall, precision)


def test_look_is_the_classifier():
    network = build("preact-tiny").eval()
    x = torch.rand(7, 3, 32, 32)
    seen = judging.look(network, x, batch_size=3)
    assert seen.features.shape == (7, 128)
    with torch.no_grad():
        labels = torch.cat([network(batch).argmax(-1) for batch in x.split(3)])
    assert torch.equal(seen.labels, labels), "the same batches, so the same to the bit"
    assert judging.agreement(seen, seen.labels) == 1.0


def test_too_few():
    with pytest.raises(fr.FuncrobustError, match="at least 4"):
        judging.precision_recall(cloud(3, 0.0, 1.0), cloud(9, 0.0, 1.0))


def test_representation_leaves_the_network_alone():
    network = build("robustness-resnet18").double().eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = network(x)
        features = representation(network)(x)
        assert features.shape == (2, 512)
        assert torch.allclose(network(x), before)
        head = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
        assert torch.allclose(head(features), before)
    with pytest.raises(fr.FuncrobustError, match=r"nn\.Linear"):
        representation(nn.ReLU())
    assert isinstance(representation(nn.Linear(2, 3)), nn.Identity)
