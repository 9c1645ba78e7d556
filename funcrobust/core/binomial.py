"""What k successes in n independent trials say of their probability p, exactly.

All through the incomplete beta function: P[Bin(n, p) ≥ k] = I_p(k, n − k + 1). Counts k are tensors
of any shape; results are float64, on their device. 0 ≤ k ≤ n is taken for granted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from funcrobust.core.errors import require_count


class Share(NamedTuple):
    """A share, with the ends of its exact 95 % interval (Clopper & Pearson 1934): all in [0, 1]."""

    value: float
    low: float
    high: float


def share(successes: int, n: int) -> Share:
    """Return the share of ``successes`` in n ≥ 1 trials, with its exact 95 % interval.

    Clopper and Pearson's, never shorter than its level. Raises `FuncrobustError` for n < 1.
    """
    require_count("n", n, minimum=1)
    low, high = interval(torch.tensor(successes), n)
    return Share(successes / n, float(low), float(high))


def lower_bound(k: Tensor, n: int, alpha: float) -> Tensor:
    """Return p̲ with P[p̲ ≤ p] ≥ 1 − α, one-sided (Clopper & Pearson 1934); 0 for k = 0.

    The p under which k or more successes have probability α.
    """
    counts = _numbers(k)
    p = special.betaincinv(np.maximum(counts, 1.0), n - counts + 1.0, alpha)
    return _tensor(np.where(counts > 0, p, 0.0), k)


def interval(k: Tensor, n: int, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return the ends of Clopper and Pearson's interval, α = (1 − ``level``)/2 on either side."""
    alpha = (1 - level) / 2
    return lower_bound(k, n, alpha), 1 - lower_bound(n - k, n, alpha)


def even_chance(k: Tensor, other: Tensor) -> Tensor:
    """Return the two-sided p-value of p = 1/2 after k successes and ``other`` failures."""
    more, fewer = _numbers(torch.maximum(k, other)), _numbers(torch.minimum(k, other))
    tail = special.betainc(np.maximum(more, 1.0), fewer + 1.0, 0.5)
    return _tensor(np.where(more > fewer, np.minimum(1.0, 2 * tail), 1.0), k)


def _numbers(k: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return k.detach().cpu().numpy().astype(np.float64)


def _tensor(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device)
