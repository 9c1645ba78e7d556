"""Philox 4x32-10 in torch's own integer operations, for a torch that has no kernel of it.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A key is a seed and an offset of
64 bits each; number n of a key is the block cipher's answer to offset + n, four words of 32 bits.
The same bits as ``torch.func._random``, which came after torch 2.11 and may go again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
STEPS = (0x9E3779B9, 0xBB67AE85)
"""Weyl constants: what a round adds to the key, the golden ratio's and √3's bits."""
DIGITS = 24
"""Of a float32 in [0, 1)."""


def fold_in(key: Tensor, number: int) -> Tensor:
    """Return the key that is number ``number`` of ``key`` (..., 2) uint64."""
    a, b, c, d = _cipher(key, torch.full((), number, device=key.device))
    return torch.stack([a | b << 32, c | d << 32], -1).view(torch.uint64)


def uniform(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw float32 numbers from [0, 1), of a key (2,), or of keys (B, 2) for each first index."""
    each = math.prod(shape[key.ndim - 1 :])
    words = _cipher(key.unsqueeze(-2), torch.arange(-(-each // 4), device=key.device))
    drawn = torch.stack(words, -1).flatten(-2)[..., :each]
    share = (drawn & (1 << DIGITS) - 1).to(torch.float32) * 2.0**-DIGITS
    return share.reshape(tuple(shape))


def _cipher(key: Tensor, number: Tensor) -> list[Tensor]:
    """Encrypt offset + number with the seed: four words, int64 in [0, 2³²)."""
    seed, offset = key.view(torch.int64).unbind(-1)
    low = (offset & WORD) + (number & WORD)
    high = (offset >> 32) + (number >> 32) + (low >> 32)
    counter = [low & WORD, high & WORD, torch.zeros_like(low), torch.zeros_like(low)]
    keys = [seed & WORD, seed >> 32 & WORD]
    for _ in range(ROUNDS):
        (high_0, low_0), (high_1, low_1) = (
            _product(m, c) for m, c in zip(MULTIPLIERS, counter[::2], strict=True)
        )
        counter = [high_1 ^ counter[1] ^ keys[0], low_1, high_0 ^ counter[3] ^ keys[1], low_0]
        keys = [k + step & WORD for k, step in zip(keys, STEPS, strict=True)]
    return counter


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a·b, words both; no part of it exceeds 2⁴⁹."""
    low = a * (b & 0xFFFF)
    above = a * (b >> 16) + (low >> 16)
    return above >> 16, (above & 0xFFFF) << 16 | low & 0xFFFF
