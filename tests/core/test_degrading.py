"""Ways to degrade images, by the laws that they state."""

from __future__ import annotations

import math

import pytest
import torch

import funcrobust as fr

X = (
    torch.linspace(0, 1, 3 * 8 * 8, dtype=torch.float64)
    .reshape(1, 3, 8, 8)
    .expand(4000, -1, -1, -1)
)
Y = torch.zeros(4000, dtype=torch.int64)


def degraded(way, x=X, y=Y, seed=0):
    return way(x, y, fr.generator(seed, "test"))


def sizes(s, x=X):
    return (s - x).flatten(1).square().mean(1).sqrt()


def test_gaussian_noise_is_uniform_over_orders_of_magnitude():
    """Quantiles of log σ, estimated from the 192 numbers of each image."""
    rho = sizes(degraded(fr.gaussian_noise(0.02, 0.6)))
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = 0.02 * 30**q
        assert abs(math.log(rho.quantile(q) / expected)) < 0.15
    one = degraded(fr.gaussian_noise(0.3, 0.3)) - X
    assert abs(one.mean()) < 0.002
    assert abs(one.std() - 0.3) < 0.002
    assert torch.equal(degraded(fr.gaussian_noise()), degraded(fr.gaussian_noise()))
    assert not torch.equal(degraded(fr.gaussian_noise()), degraded(fr.gaussian_noise(), seed=1))


def test_mixtures_lie_on_the_straight_way():
    z = 1 - X
    s = degraded(fr.mixed_with(lambda *_: z, most=0.8))
    t = ((s - X) / (z - X)).flatten(1)
    assert (t - t[:, :1]).abs().max() < 1e-12, "one share an image"
    assert 0 <= t.min() < 0.01
    assert 0.79 < t.max() <= 0.8
    assert abs(t[:, 0].mean() - 0.4) < 0.02
    assert torch.equal(degraded(fr.mixed_with(lambda *_: z, most=0.0)), X)


def test_what_it_is_mixed_with_is_drawn_for_the_labels():
    y = torch.arange(6) % 3
    s = degraded(fr.mixed_with(lambda x, y, _: y.reshape(-1, 1, 1, 1) + 0 * x), 0 * X[:6], y)
    assert s[y == 0].abs().max() == 0
    assert torch.equal(
        (s[y == 2] / s[y == 2].amax((1, 2, 3), keepdim=True)).unique(), torch.ones(1)
    )


def test_shares_of_a_batch():
    def by(amount):
        return lambda x, _y, _: x + amount

    way = fr.in_shares((1.0, by(1.0)), (1.0, by(2.0)), (2.0, by(3.0)))
    assert degraded(way, 0 * X[:8, :, 0, 0], Y[:8])[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 3, 3]
    assert degraded(way, 0 * X[:1, :, 0, 0], Y[:1])[:, 0].tolist() in ([3], [2], [1])
    assert degraded(way, 0 * X[:5, :, 0, 0], Y[:5]).shape == (5, 3), "none is left out"


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: fr.gaussian_noise(0.5, 0.1), "low <= high"),
        (lambda: fr.gaussian_noise(0.0, 0.1), "0 < low"),
        (lambda: fr.gaussian_noise(0.1, float("inf")), "finite"),
        (lambda: fr.mixed_with(lambda x, *_: x, most=1.5), "most"),
        (lambda: fr.in_shares((0.0, fr.gaussian_noise())), "share"),
        (lambda: fr.in_shares((-1.0, fr.gaussian_noise())), "share"),
    ],
)
def test_what_makes_no_sense_is_refused(build, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        build()
