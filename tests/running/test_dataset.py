"""The images of a command."""

from __future__ import annotations

from collections import Counter
from math import comb, sqrt

import pytest
import torch

from funcrobust.core.errors import FuncrobustError
from funcrobust.data import Dataset, load
from funcrobust.running.dataset import chosen_test_images, require_mirrored


def numbered(count):
    """A set whose image k is all k, and of class k."""
    y = torch.arange(count)
    x = y.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    names = tuple(map(str, range(count)))
    return Dataset("toy", x, y, x, y, class_names=names, source="made up")


def test_a_choice_is_uniform_without_replacement_and_in_order():
    dataset, times = numbered(6), 3000
    found = Counter()
    for seed in range(times):
        places, x, y = chosen_test_images(dataset, 2, seed)
        assert torch.equal(places, y)
        assert torch.equal(x[:, 0, 0, 0].long(), y)
        found[tuple(places.tolist())] += 1
    pairs = comb(6, 2)
    assert len(found) == pairs
    assert all(a < b for a, b in found)
    deviation = sqrt(times / pairs * (1 - 1 / pairs))
    assert max(abs(n - times / pairs) for n in found.values()) < 5 * deviation


def test_all_of_them_where_there_are_no_more():
    dataset = numbered(6)
    for examples in (None, 6, 7):
        assert chosen_test_images(dataset, examples, 3).places.tolist() == list(range(6))


def test_a_choice_is_a_function_of_the_seed():
    first, again, other = (chosen_test_images(numbered(90), 9, s).places for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_digits_are_not_looked_at_in_a_mirror():
    digits = load("digits")
    require_mirrored("preact-tiny", digits)
    require_mirrored("own:net-flip", digits)  # no network of ours: whose it is knows
    with pytest.raises(FuncrobustError, match="one of digits may be of another class: take preac"):
        require_mirrored("preact-tiny-flip", digits)
