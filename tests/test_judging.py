"""Scores of made images, against closed forms and each other."""

from __future__ import annotations

import math

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


def test_frechet_distance_is_that_of_torch_fidelity():
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    seen = cloud(90, 0.0, 1.0, d=12), cloud(70, 0.3, 1.4, d=12, seed=1)
    theirs = [fid.fid_features_to_statistics(s.features.double()) for s in seen]
    expected = fid.fid_statistics_to_metric(*theirs, verbose=False)[fid.KEY_METRIC_FID]
    assert judging.frechet_distance(*seen) == pytest.approx(expected, rel=1e-9)


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
        logits = torch.cat([network(batch) for batch in x.split(3)])
    assert torch.equal(seen.labels, labels), "the same batches, so the same to the bit"
    assert torch.equal(seen.logits, logits)
    network.train()
    assert torch.equal(judging.look(network, x, batch_size=3).logits, logits), "evaluation mode"
    assert all(part.training for part in network.modules()), "the network itself is left alone"
    assert judging.agreement(seen, seen.labels) == 1.0


def test_too_few():
    with pytest.raises(fr.FuncrobustError, match="at least 4"):
        judging.precision_recall(cloud(3, 0.0, 1.0), cloud(9, 0.0, 1.0))


class Means(judging.Judge):
    """A judge of one's own: mean colours, and logits of classes that are not the data's."""

    batch_size = 2

    def __init__(self, logits=True):
        super().__init__()
        self.logits, self.batches = logits, []

    def forward(self, x):
        self.batches.append((len(x), x.dtype, self.training, torch.is_grad_enabled()))
        features = x.double().flatten(1).mean(1, keepdim=True)
        return features, features.expand(-1, 5) if self.logits else None


def test_a_judge_of_ones_own():
    x = torch.arange(5 * 3 * 2 * 2, dtype=torch.uint8).view(5, 3, 2, 2)
    judge, told = Means(), []
    seen = judging.look(judge, x, advance=told.append)
    assert judge.batches == [(n, torch.uint8, False, False) for n in (2, 2, 1)]
    assert told == [2, 2, 1]
    assert seen.features.dtype == torch.float32
    assert torch.equal(seen.features[:, 0], x.float().flatten(1).mean(1))
    assert seen.logits.shape == (5, 5)
    assert judging.look(Means(logits=False), x).logits is None
    judging.look(judge, x, batch_size=4)
    assert [n for n, *_ in judge.batches[3:]] == [4, 1]
    assert judging.as_judge(judge) is judge


@pytest.mark.parametrize("index", [slice(2), torch.tensor([3, 0, 3])])
def test_a_part_of_what_was_seen(index):
    x = torch.rand(4, 3, 8, 8)
    for judge in (build("preact-tiny").eval(), Means(), Means(logits=False)):
        seen, few = judging.look(judge, x).part(index), judging.look(judge, x[index])
        assert torch.allclose(seen.features, few.features, atol=1e-5)
        assert torch.equal(seen.labels, few.labels)
        assert (seen.logits is None) == (few.logits is None)
        assert seen.logits is None or torch.allclose(seen.logits, few.logits, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_no_opinion_is_not_an_agreement(n):
    seen = judging.look(Means(), torch.rand(n, 3, 2, 2))
    with pytest.raises(fr.FuncrobustError, match="ask a classifier"):
        judging.agreement(seen, torch.zeros(n, dtype=torch.int64))


def scored(logits):
    return Seen(torch.zeros(len(logits), 1), torch.zeros(0, dtype=torch.int64), logits)


def test_inception_score_closed_forms():
    """1 where p(y|x) does not depend on x; 10 where ten classes are certain, and as many of each.

    Between them p = (¾, ¼) or (¼, ¾), as many of each: exp KL(p ‖ ½) by hand.
    """
    assert judging.inception_score(scored(torch.randn(1, 7).expand(20, 7))) == pytest.approx((1, 0))
    certain = scored(1e4 * torch.eye(10, 11).repeat(30, 1))  # an 11th class that nobody shows
    assert judging.inception_score(certain, splits=1) == pytest.approx((10, 0))
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat(8, 1)
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert judging.inception_score(scored(p.log()), splits=1)[0] == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_is_that_of_torch_fidelity(splits):
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(47, 11, generator=torch.Generator().manual_seed(5))
    theirs = isc.isc_features_to_metric(logits, splits=splits)
    ours = judging.inception_score(scored(logits), splits=splits)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_inception_score_needs_classes_and_images():
    with pytest.raises(fr.FuncrobustError, match="no class probabilities"):
        judging.inception_score(cloud(20, 0.0, 1.0))
    with pytest.raises(fr.FuncrobustError, match="10 splits cannot be had of 9"):
        judging.inception_score(scored(torch.zeros(9, 3)))


@pytest.mark.parametrize(
    ("real", "made", "d", "said"),
    [
        (2000, 2000, 4, None), (2000, 1999, 4, 1999), (1500, 3000, 4, 1500),
        (2047, 3000, 2048, 2047), (2048, 2048, 2048, None),
    ],
)  # fmt: skip
def test_the_caveat_of_small_samples(real, made, d, said):
    seen = [Seen(torch.empty(n, d), torch.empty(n)) for n in (real, made)]
    line = f"Fréchet distance of {said} images: biased upwards; compare at equal N only"
    assert judging.caveat(*seen) == (said and line)


def brute_force(train, x):
    flat = [t.double().flatten(1) / (255 if t.dtype == torch.uint8 else 1) for t in (train, x)]
    return (flat[1][:, None] - flat[0][None]).square().sum(-1).sqrt().min(1)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("kind", ["features", "bytes"])
def test_nearest_is_that_of_brute_force(chunk, kind):
    train, x = torch.randn(53, 2, 3) + 5, torch.randn(31, 2, 3) + 5
    if kind == "bytes":
        train, x = ((20 * t).to(torch.uint8) for t in (train, x))
    expected = brute_force(train, x)
    found = judging.nearest(train, x, chunk=chunk)
    assert torch.allclose(found.distances.double(), expected.values, rtol=1e-5)
    if kind == "features":  # bytes tie
        assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nearest_of_bytes_and_of_floats(dtype, flipped):
    """In the higher precision of the two, of which bytes have float32's."""
    draw = torch.Generator().manual_seed(0)
    train = torch.randint(256, (53, 2, 3), generator=draw, dtype=torch.uint8)
    x = torch.rand(31, 2, 3, generator=draw).to(dtype)
    train, x = (x, train) if flipped else (train, x)
    expected, found = brute_force(train, x), judging.nearest(train, x, chunk=7)
    assert found.distances.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(found.distances.double(), expected.values, rtol=1e-5)
    assert torch.equal(found.indices, expected.indices)


def test_a_copy_is_at_zero():
    """By matrix products alone, float32 puts a copy of a bright image at 1e-2 and more."""
    train = 0.9 + 0.1 * torch.rand(300, 3, 32, 32)
    copied = torch.randperm(300)[:40]
    plain = torch.cdist(train[copied].flatten(1), train.flatten(1)).min(1).values
    assert plain.max() > 1e-3, "there would be nothing to test"
    found = judging.nearest(train, train[copied], chunk=64)
    assert torch.equal(found.indices, copied)
    assert torch.equal(found.distances, torch.zeros(40))


def test_nearest_refuses():
    with pytest.raises(fr.FuncrobustError, match="one shape"):
        judging.nearest(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(fr.FuncrobustError, match="needs training images"):
        judging.nearest(torch.zeros(0, 3), torch.zeros(4, 3))


def test_copying_in_features_and_in_pixels():
    train, held_out = torch.rand(60, 3, 2, 2), torch.rand(20, 3, 2, 2)
    made = train[10:25] + 1e-4  # copies, hardly altered
    found = judging.copying(Means(), train, made, held_out)
    seen = [judging.look(Means(), x).features for x in (train, made, held_out)]
    spaces = {"features": seen, "pixels": [train, made, held_out]}
    for space, (known, new, unseen) in spaces.items():
        for kind, x in {"made": new, "held_out": unseen}.items():
            distances = getattr(found[space], kind).distances
            assert torch.allclose(distances.double(), brute_force(known, x).values, atol=1e-6)
    pixels = found["pixels"]
    assert torch.equal(pixels.made.indices, torch.arange(10, 25))
    assert pixels.made.distances.max() < pixels.held_out.distances.min()


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
