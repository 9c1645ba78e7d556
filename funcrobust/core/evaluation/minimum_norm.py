"""Smallest perturbations: their norms, and the robust accuracy at every radius that follows.

An image withstands radius r if the smallest perturbation found for it is larger than r. One that is
misclassified as it is has 0, one that no attack fools has ∞. What an attack does not find may be
there: accuracies from it are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core import binomial
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation.ensemble import Outcome
from funcrobust.core.examples import flat

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l0": lambda moved: (moved != 0).sum(1).double(),
    "l1": lambda moved: moved.abs().sum(1),
    "l2": lambda moved: moved.norm(dim=1),
    "linf": lambda moved: moved.abs().amax(1),
}
"""Of the rows of (N, d): (N,). L0 counts the numbers that differ, each channel's own."""


def norm_in(ball: Linf | L2, moved: Tensor) -> Tensor:
    """Return the norm of (N, …) in which ``ball`` has its radius: (N,)."""
    return NORMS["l2" if isinstance(ball, L2) else "linf"](flat(moved))


class Share(NamedTuple):
    """The share of the images that withstand a radius, with its interval."""

    radius: float
    accuracy: float
    low: float
    high: float


def smallest(outcome: Outcome, x: Tensor, norm: str) -> Tensor:
    """Return the norm of what fools the network for each of x (N, …), floats: (N,) float64.

    0 where nothing is needed, ∞ where nothing was found.
    """
    if norm not in NORMS:
        raise FuncrobustError(f"unknown norm {norm!r}: use {', '.join(NORMS)}")
    moved = flat(outcome.images.double() - x.double())
    return NORMS[norm](moved).masked_fill(outcome.robust, torch.inf)


def accuracy_at(norms: Tensor, radius: float) -> Share:
    """Return the share of ``norms`` (N,) above ``radius``, with its 95 % interval."""
    return _shares([radius], (norms > radius).sum().unsqueeze(0), len(norms))[0]


def curve(norms: Tensor, *, to: float = 0.0) -> list[Share]:
    """Return robust accuracy at every radius where it falls, and from 0 to past the last of them.

    At least up to the radius ``to``.

    Each point has the accuracy of the radii below it, down to the point before: steps, as
    `report.plots.bands` draws them.
    """
    found = norms[norms.isfinite() & (norms > 0)].unique()
    last = max(to, 1.05 * float(found[-1]) if len(found) else 1.0)
    radii = [0.0, *found.tolist(), last]
    standing = [int((norms > 0).sum())]
    standing += [int((norms >= radius).sum()) for radius in radii[1:]]
    return _shares(radii, torch.tensor(standing), len(norms))


def _shares(radii: list[float], standing: Tensor, n: int) -> list[Share]:
    low, high = binomial.interval(standing, n)
    return [
        Share(r, k / n, a, b)
        for r, k, a, b in zip(radii, standing.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
