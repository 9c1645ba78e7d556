"""Counted randomness: every random number is a function of (seed, purpose, count).

Nothing is drawn from global state and no generator state is ever saved, so a run resumed from any
step continues to the same bits. A generator is for what is drawn outside an update; a key, which is
a tensor, for what is drawn inside one, where all must be pure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcrobust.core import philox
from funcrobust.core.errors import FuncrobustError

try:
    from torch.func import _random as stateless
except ImportError:  # before torch 2.12
    stateless = None  # type: ignore[assignment]


def derive_seed(seed: int, purpose: str, count: int = 0) -> int:
    """Return a 63-bit seed: the first bits of BLAKE2b over ``"seed/purpose/count"``."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(
    seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator for the ``count``-th use of randomness for ``purpose``."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, count))


class RowGenerators(NamedTuple):
    """A generator for every row of what is drawn: no row's numbers hang on who else is there."""

    generators: tuple[torch.Generator, ...]


def row_generators(seed: int, purpose: str, counts: Tensor) -> RowGenerators:
    """Return `generator` of each of the ``counts`` (n,), on the CPU whatever the device.

    So the numbers are the same on every machine; and a GPU would launch a kernel a row.
    """
    return RowGenerators(tuple(generator(seed, purpose, count) for count in counts.tolist()))


def drawn(
    kind: Callable[..., Tensor], shape: Sequence[int], source: torch.Generator | RowGenerators,
    like: Tensor, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Draw by ``kind``, `torch.rand` or `torch.randn`, on ``like``'s device."""
    if isinstance(source, RowGenerators):
        if len(source.generators) != shape[0]:
            raise FuncrobustError(f"{len(source.generators)} generators for {shape[0]} rows")
        found = torch.empty(tuple(shape), dtype=dtype, device="cpu")
        for row, each in zip(found, source.generators, strict=True):
            row.copy_(kind(row.shape, generator=each, dtype=dtype, device="cpu"))
        return found.to(like.device)
    return kind(tuple(shape), generator=source, device=like.device, dtype=dtype)


def by_rows(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark ``draw(x, generator)`` as one that draws by `drawn` alone, and each row by itself.

    It may be given `RowGenerators`, then; what is not marked draws examples one by one.
    """
    draw.by_rows = draw  # type: ignore[attr-defined]
    return draw


def is_by_rows(draw: Callable[..., Tensor]) -> bool:
    """Tell whether ``draw`` itself is marked, and not what it wraps (`functools.wraps`)."""
    marked = getattr(draw, "by_rows", None)
    return marked is not None and getattr(draw, "__func__", draw) is marked


def key(seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return the key for the ``count``-th use of randomness for ``purpose``: (2,) uint64.

    A tensor, so it may travel in a batch, be an argument of what is compiled, and be stacked and
    mapped over by ``vmap``, for masks of each member's own. The generator is Philox 4x32-10 (Salmon
    et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), as torch has it; where it has not,
    ``funcrobust.core.philox``, of the same bits.
    """
    # Not torch's own, which copies from the host: a GPU would be waited for.
    return _key_of(torch.full((), derive_seed(seed, purpose, count), device=torch.device(device)))


def key_from(generator: torch.Generator) -> Tensor:
    """Draw a `key` from a generator."""
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return _key_of(seed)


def _key_of(seed: Tensor) -> Tensor:
    """Return ``torch.func._random.key(seed)`` of an int64 seed on its device."""
    return torch.stack([seed, torch.zeros_like(seed)]).view(torch.uint64)


@torch.library.custom_op("funcrobust::fold_in", mutates_args=())
def folded(key: Tensor, number: int) -> Tensor:
    """Return another key, a function of ``key`` and ``number``."""
    return _fold_in(key, number).clone()


def _fold_in(key: Tensor, number: int) -> Tensor:
    return philox.fold_in(key, number) if stateless is None else stateless.fold_in(key, number)


@folded.register_fake
def _(key: Tensor, number: int) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(key)


# A custom operator, because torch's own has no rule for vmap (2.15).
@torch.library.custom_op("funcrobust::uniform", mutates_args=())
def uniform(key: Tensor, count: int, shape: list[int]) -> Tensor:
    """Draw float32 numbers from [0, 1), the ``count``-th that are drawn with this ``key``.

    Nests under ``grad`` and ``vmap`` (over keys: each its own numbers) and compiles.
    """
    folded = _fold_in(key, count)
    if stateless is None:
        return philox.uniform(folded, shape)
    if key.ndim > 1:  # mapped over: torch wants a dimension of the key for each of the shape's
        *batch, size = key.shape
        folded = folded.reshape(*batch, *(1,) * (len(shape) - len(batch)), size)
    return stateless.uniform(folded, *shape)  # type: ignore[arg-type]


@uniform.register_fake
def _(key: Tensor, count: int, shape: list[int]) -> Tensor:  # noqa: ARG001 (the operator's)
    return key.new_empty(shape, dtype=torch.float32)


@uniform.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], key: Tensor, count: int, shape: list[int]
) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return uniform(key.movedim(in_dims[0], 0), count, [info.batch_size, *shape]), 0


def normal(key: Tensor, count: int, shape: Sequence[int]) -> Tensor:
    """Draw float32 numbers from N(0, 1), the ``count``-th that are drawn with this ``key``.

    By Box and Muller's transform of two of `uniform`'s, 2·count and 2·count + 1.
    """
    u, v = (uniform(key, 2 * count + i, list(shape)) for i in (0, 1))
    return box_muller(u, v)


def box_muller(u: Tensor, v: Tensor) -> Tensor:
    """Turn two independent uniform numbers in [0, 1) into one from N(0, 1)."""
    return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)
