"""Counted randomness: every random number is a function of (seed, purpose, count).

Nothing is drawn from global state and no generator state is ever saved, so a run resumed from any
step continues to the same bits.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, count: int = 0) -> int:
    """Return a 63-bit seed: the first bits of BLAKE2b over ``"seed/purpose/count"``."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(
    seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator for the ``count``-th use of randomness for ``purpose``."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, count))
