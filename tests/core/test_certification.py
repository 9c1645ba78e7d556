"""Certification where the truth is known: a linear network's smoothed classifier is exact.

Of z = w·x + b in noise, P[z > 0] = Φ(z/(σ‖w‖)), and the boundary is |z|/‖w‖ away.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from scipy import stats

import funcrobust as fr
from funcrobust.core import certification

SIGMA = 0.5
WEIGHTS = {"w": torch.tensor([3.0, -4.0, 0.0, 0.0], dtype=torch.float64)}


def linear(params, x):
    """Logits (B, 2) of a line: class 1 where w·x > 0, ‖w‖ = 5."""
    z = x.flatten(1) @ params["w"]
    return torch.stack([-z, z], 1)


def at_distance(distance):
    """Points (B, 2, 2) so far from the line, in class 1 where that is positive."""
    distance = torch.as_tensor(distance, dtype=torch.float64)
    along = WEIGHTS["w"] / 5
    return (distance[:, None] * along + torch.tensor([4.0, 3.0, 1.0, 7.0])).reshape(-1, 2, 2)


def certify(x, predict=linear, **options):
    return fr.certify(predict, WEIGHTS, x, **{"sigma": SIGMA, "n": 500, "n0": 20} | options)


def test_counts_have_the_law_of_the_closed_form():
    distance = torch.linspace(-0.9, 0.9, 19)
    found = certify(at_distance(distance), n=4000).counts
    assert torch.equal(found.sum(1), torch.full((19,), 4000))
    p = torch.special.ndtr(distance.double() / SIGMA)
    z = (found[:, 1] - 4000 * p) / (4000 * p * (1 - p)).sqrt()
    assert z.abs().max() < 5  # one in 90 000 of such 19 would be beyond
    assert 0.4 < z.square().mean() < 2.2  # χ² of 19 degrees over 19: one in 1000 on either side


def test_radii_are_the_bounds_of_the_counts():
    """By scipy's functions, from what was counted."""
    distance = torch.tensor([-0.6, -0.2, 0.3, 0.5, 1.0, 4.0])
    found = certify(at_distance(distance), n=1000, alpha=0.01)
    assert found.label.tolist() == [0, 0, 1, 1, 1, 1]
    for k, radius in zip(found.counts.amax(1).tolist(), found.radius.tolist(), strict=True):
        low = stats.binomtest(k, 1000, alternative="greater").proportion_ci(0.99, "exact").low
        assert radius == pytest.approx(SIGMA * stats.norm.ppf(low), abs=1e-6)
    assert (found.radius <= distance.abs()).all()  # at odds of one in 100 each


def test_radii_approach_the_distance_from_below():
    distance = torch.tensor([0.2, 0.5, 0.9])
    short = [
        distance - certify(at_distance(distance), n=n).radius for n in (50, 1000, 20000)
    ]  # fmt: skip
    means = [float(s.mean()) for s in short]
    assert means == sorted(means, reverse=True)
    assert 0 < means[-1] < 0.03 < 0.15 < means[0]


def test_a_radius_is_too_large_as_often_as_alpha_says():
    """Of 500 certificates at α = 0.2 a fifth at most; not far fewer, or the bound is loose.

    Six standard deviations of a share are 0.107.
    """
    found = certify(at_distance([0.3] * 500), n=200, n0=16, alpha=0.2)
    wrong = float((found.radius > 0.3).double().mean())
    assert 0.06 < wrong < 0.307


def test_it_abstains_where_no_class_has_half():
    found = certify(at_distance([0.0] * 20), alpha=0.001)
    said = found.label >= 0
    assert said.sum() <= 1  # expected: one in fifty such twenty
    assert (found.label[~said] == -1).all()
    assert (found.radius[~said] == 0).all()


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.001), (1000, 0.001), (77, 0.3)])
def test_a_constant_network_is_certified_as_far_as_n_goes(n, alpha):
    def constant(params, x):
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)

    found = certify(torch.zeros(3, 5), constant, n=n, alpha=alpha)
    expected = SIGMA * NormalDist().inv_cdf(alpha ** (1 / n))
    assert found.label.tolist() == [2, 2, 2]
    assert found.radius.tolist() == pytest.approx([expected] * 3, rel=1e-9)
    assert fr.largest_radius(SIGMA, n, alpha) == float(found.radius[0])


def test_predict_says_more_than_certify():
    counts = torch.tensor([[400, 300, 300], [110, 100, 90], [50, 50, 0], [3, 900, 97], [0, 0, 9]])
    assert certification.predicted(counts, 0.001).tolist() == [0, -1, -1, 1, -1]
    assert certification.predicted(counts, 0.01).tolist() == [0, -1, -1, 1, 2]
    x = at_distance([-0.4, 0.0, 0.4])
    found = fr.predict_smoothed(linear, WEIGHTS, x, sigma=SIGMA, n=400)
    assert found.tolist() == [0, -1, 1]


@pytest.mark.parametrize("alpha", [0.2, 0.001])
def test_predict_abstains_where_scipys_test_does(alpha):
    """Whatever 100 copies say, in two classes of three."""
    k = torch.arange(101)
    found = certification.predicted(torch.stack([0 * k, k, 100 - k], 1), alpha)
    for count, label in zip(k.tolist(), found.tolist(), strict=True):
        sure = stats.binomtest(count, 100).pvalue <= alpha
        assert label == ((1 if count > 50 else 2) if sure else -1)


# --- randomness ---------------------------------------------------------------------------------


def seen(x, batch_size=256, **options):
    """Every noisy copy that the network is shown, in order, and how many at a time."""
    copies = []

    def looking(params, x):
        copies.append(x)
        return linear(params, x)

    found = certify(x, looking, batch_size=batch_size, **options)
    return torch.cat(copies), [len(c) for c in copies], found


def test_the_result_does_not_depend_on_the_batch():
    x = at_distance([0.1, 0.3, -0.2])
    copies, sizes, found = seen(x, n=100)
    assert sizes == [20] * 3 + [100] * 3
    for batch_size in (1, 7, 16, 33):
        others, sizes, other = seen(x, batch_size, n=100)
        assert max(sizes) == min(batch_size, 100)
        assert torch.equal(copies, others), "the same noise, to the bit"
        assert torch.equal(found.counts, other.counts)
        assert torch.equal(found.radius, other.radius)


def test_noise_belongs_to_the_seed_and_to_the_place():
    x = at_distance([0.1, 0.3, -0.2])
    found = certify(x)
    assert torch.equal(certify(x[:2]).counts, found.counts[:2])
    assert torch.equal(certify(x).counts, found.counts)
    assert not torch.equal(certify(x, seed=1).counts, found.counts)
    assert torch.equal(certify(x, n=500).counts, found.counts)


def test_every_copy_has_noise_of_its_own_and_is_not_clamped():
    x = torch.full((4, 3, 8, 8), 0.1, dtype=torch.float64)
    weights = {"w": torch.ones(192, dtype=torch.float64)}
    copies = []

    def looking(params, x):
        copies.append(x)
        return linear(params, x)

    fr.certify(looking, weights, x, sigma=0.25, n=100, n0=30)
    noise = torch.cat(copies) - 0.1
    assert len(noise.flatten(1).unique(dim=0)) == 4 * 130
    assert abs(float(noise.mean())) < 0.25 * 5 / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(0.25, abs=0.25 * 5 / math.sqrt(2 * noise.numel()))
    assert float(torch.cat(copies).min()) < -0.5, "as in the paper"


def test_progress_counts_every_copy():
    counts = []
    certify(at_distance([0.1, 0.2]), n=100, batch_size=30, advance=counts.append)
    assert sum(counts) == 2 * 120


def test_bytes_are_divided_by_255():
    x = torch.randint(256, (3, 4), dtype=torch.uint8)
    weights = {"w": WEIGHTS["w"].float()}
    found, expected = (
        fr.certify(linear, weights, given, sigma=0.25, n=200) for given in (x, x / 255)
    )
    assert torch.equal(found.counts, expected.counts)


# --- accuracy, and what is refused --------------------------------------------------------------


def test_certified_accuracy_by_hand():
    radius = torch.tensor([0.0, 0.1, 0.5, 0.7], dtype=torch.float64)
    correct = torch.tensor([False, True, True, False])
    found = fr.certified_accuracy(radius, correct, [0.0, 0.1, 0.2, 0.5, 0.6])
    assert found.tolist() == [0.5, 0.5, 0.25, 0.25, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"), ({"sigma": -1.0}, "sigma"),
        ({"alpha": 0.0}, "alpha must be in"), ({"alpha": 1.0}, "alpha must be in"),
        ({"n": 9}, "9 samples can certify nothing"), ({"n": 0}, "n must be"),
        ({"n0": 0}, "n0 must be"), ({"batch_size": 0}, "batch_size must be"),
        ({"x": torch.zeros(0, 4)}, "no examples.*x is empty"),
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, "uint8 or floating point"),
        ({"predict": lambda params, x: x[:, :1]}, "at least two classes"),
        ({"predict": lambda params, x: x[:, 0]}, "at least two classes"),
    ],
)  # fmt: skip
def test_bad_input(options, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        certify(**{"x": torch.zeros(2, 4), "predict": lambda params, x: x[:, :3]} | options)


def test_bad_shapes_of_radii():
    with pytest.raises(fr.FuncrobustError, match="one number an example"):
        fr.certified_accuracy(torch.zeros(3), torch.ones(2), [0.0])
    with pytest.raises(fr.FuncrobustError, match="alpha must be in"):
        certification.predicted(torch.ones(1, 2), 2.0)
