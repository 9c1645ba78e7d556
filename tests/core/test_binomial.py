"""Bounds on a probability, against scipy's root finding and by adding up every outcome."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from funcrobust.core import binomial
from funcrobust.core.errors import FuncrobustError

CASES = [(k, n) for n in (1, 7, 100, 5000) for k in sorted({0, 1, n // 2, n - 1, n})]


@pytest.mark.parametrize(("k", "n"), CASES)
@pytest.mark.parametrize("alpha", [0.5, 0.001])
def test_the_lower_bound_is_clopper_and_pearsons(k, n, alpha):
    found = float(binomial.lower_bound(torch.tensor(k), n, alpha))
    test = stats.binomtest(k, n, alternative="greater")
    expected = test.proportion_ci(1 - alpha, method="exact").low
    assert found == pytest.approx(expected, abs=1e-8)  # its search stops there
    if k:
        assert stats.binom.sf(k - 1, n, found) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize(("k", "n"), CASES)
def test_the_interval_is_clopper_and_pearsons(k, n):
    low, high = binomial.interval(torch.tensor(k), n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert float(low) == pytest.approx(expected.low, abs=1e-8)
    assert float(high) == pytest.approx(expected.high, abs=1e-8)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.3085), (5, 10, 0.1871, 0.8129), (450, 1000, 0.4189, 0.4814)],
)
def test_a_share_has_its_exact_interval(successes, n, low, high):
    """Published values of the exact interval (Clopper & Pearson 1934)."""
    assert binomial.share(successes, n) == pytest.approx((successes / n, low, high), abs=5e-5)


def test_of_nothing_there_is_no_share():
    with pytest.raises(FuncrobustError, match="n must be"):
        binomial.share(0, 0)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.7, 0.999])
def test_the_bound_holds_with_its_confidence_whatever_p(p):
    """Every outcome of 30 trials, by its probability."""
    k = torch.arange(31)
    weight = stats.binom.pmf(k.numpy(), 30, p)
    for alpha in (0.3, 0.05):
        below = (binomial.lower_bound(k, 30, alpha) <= p).numpy()
        assert weight[below].sum() >= 1 - alpha - 1e-12
    low, high = (end.numpy() for end in binomial.interval(k, 30))
    assert weight[(low <= p) & (p <= high)].sum() >= 0.95 - 1e-12


def test_the_test_of_an_even_chance_is_scipys():
    pairs = [(0, 0), (1, 0), (5, 5), (6, 5), (5, 6), (40, 10), (700, 600), (0, 30)]
    k, other = torch.tensor(pairs).T
    expected = [stats.binomtest(a, a + b).pvalue if a + b else 1.0 for a, b in pairs]
    assert np.allclose(binomial.even_chance(k, other).numpy(), expected, rtol=1e-9)
