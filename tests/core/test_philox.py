"""Philox in integer operations: the published vectors, and torch's own kernels to the last bit."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core import philox, randomness

kernels = pytest.importorskip("torch.func._random", reason="this torch has no Philox of its own")

KNOWN = {  # Random123's kat_vectors, philox4x32 of 10 rounds: counter and key, then the answer
    ((0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
}


@pytest.mark.parametrize(("given", "answer"), KNOWN.items())
def test_known_answers(given, answer):
    (offset, _), (seed, _) = given
    key = torch.tensor([seed, offset], dtype=torch.uint64)
    words = philox._cipher(key, torch.tensor(0))
    assert tuple(map(int, words)) == answer


SEEDS = [0, 1, 2**32 - 1, 2**63 - 1, *(randomness.derive_seed(s, "key") for s in range(20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_torchs(seed):
    """Folded again and again, so that offsets are of 64 bits and every carry comes."""
    ours = theirs = kernels.key(seed)
    assert torch.equal(randomness._key_of(torch.tensor(seed)), theirs)
    for number in (0, 1, 7, 2**31, 2**40 + 3):
        ours, theirs = philox.fold_in(ours, number), kernels.fold_in(theirs, number)
        assert torch.equal(ours, theirs)
        for shape in ((), (1,), (4,), (7, 3), (2, 0)):
            assert torch.equal(philox.uniform(ours, shape), kernels.uniform(theirs, *shape))


def test_the_offset_carries():
    full = torch.tensor([5, 2**64 - 1], dtype=torch.uint64)
    assert torch.equal(philox.uniform(full, (16,)), kernels.uniform(full, 16))
    half = torch.tensor([5, 2**32 - 2], dtype=torch.uint64)
    assert torch.equal(philox.uniform(half, (16,)), kernels.uniform(half, 16))


def test_without_kernels_nothing_changes(monkeypatch):
    """`uniform` and `folded`, alone, mapped over keys, under grad."""
    key = fr.key(0, "masks")
    keys = torch.stack([key, randomness.folded(key, 3)])

    def drawn():
        draw = lambda k: randomness.uniform(k, 2, [3, 5])  # noqa: E731
        slope = torch.func.grad(lambda w: (w * draw(key)).sum())(torch.ones(3, 5))
        return draw(key), torch.func.vmap(draw)(keys), slope, randomness.folded(keys, 4)

    expected = drawn()
    monkeypatch.setattr(randomness, "stateless", None)
    assert all(torch.equal(a, b) for a, b in zip(drawn(), expected, strict=True))
