r"""Square: an adversary that sees the logits alone, no gradient.

Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 1 and 2, for the L∞ ball: from vertical
stripes of ±ε, a square window at a random place gets ±2ε in each channel, the image is projected,
and the change is kept where it lowers the margin. The window's area is a share p of the image's,
halved on the way. What it finds and gradients did not tells of gradients that are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import require_images
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.losses import own_and_others
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import by_rows, drawn

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of the image is halved: section 3 of the paper."""


def square(ball: Linf, *, queries: int = 5000, share: float = 0.8) -> Adversary:
    """Build the Square attack on the margin: at most ``queries`` forward passes an image.

    ``share`` is p at the start. Both defaults are AutoAttack's. Raises `FuncrobustError` for a ball
    that is not `linf`, or not of finite radius.
    """
    if type(ball) is not Linf or not ball.radius < float("inf"):
        raise FuncrobustError(f"square takes fr.linf(...) of finite radius, not {ball}")
    require_count("queries", queries, minimum=1)
    if not 0 < share <= 1:
        raise FuncrobustError(f"share must be in (0, 1], got {share}")
    return _Square(ball, queries, share)


@dataclass(frozen=True)
class _Square:
    ball: Linf
    queries: int
    share: float

    @torch.no_grad()
    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        require_images("square", x)
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            found[rows] = self._batch(predict, params, x[rows], y[rows], run, run.numbers[rows])
        return found

    def _batch(
        self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run, numbers: Tensor
    ) -> Tensor:
        # Every example's own numbers, all at once: two for a place, one a channel for the sign.
        stripes = run.starts(_stripes, x, numbers)
        table = run.starts(self._numbers, x, numbers, restart=1)
        found = self.ball.project(x + self.ball.radius * stripes, x)
        rows = torch.arange(len(x), device=x.device)
        now = _Standing(rows, found.clone(), x, y, table, *_look(predict, params, found, y))
        for query in range(self.queries - 1):
            if now.fell.any():
                run.advance(int(now.fell.sum()))
                found[now.rows] = now.best
                now = _Standing(*(each[~now.fell] for each in now))
            if not len(now.rows):
                return found
            window = self._window(now.table[:, query], now.center, query)
            tried = self.ball.project(now.best + 2 * self.ball.radius * window, now.center)
            margin, fell = _look(predict, params, tried, now.y)
            lower = (margin < now.least) | fell
            now.least[lower] = margin[lower]
            now.fell[lower] = fell[lower]
            now.best[lower] = tried[lower]
        run.advance(len(now.rows))
        found[now.rows] = now.best
        return found

    @by_rows
    def _numbers(self, x: Tensor, generator: torch.Generator) -> Tensor:
        size = (len(x), self.queries, 2 + x.shape[1])
        return drawn(torch.rand, size, generator, x)

    def _window(self, numbers: Tensor, like: Tensor, query: int) -> Tensor:
        """±1 in each channel inside a square at random, 0 outside: (m, C, H, W)."""
        height, width = like.shape[-2:]
        p = self.share / 2 ** sum(query > at for at in HALVED_AT)
        side = min(max(round((p * height * width) ** 0.5), 1), height, width)
        top = (numbers[:, 0] * (height - side + 1)).floor().reshape(-1, 1, 1, 1)
        left = (numbers[:, 1] * (width - side + 1)).floor().reshape(-1, 1, 1, 1)
        row = torch.arange(height, device=like.device).reshape(1, 1, -1, 1)
        column = torch.arange(width, device=like.device).reshape(1, 1, 1, -1)
        down = ((row >= top) & (row < top + side)).to(like.dtype)
        across = ((column >= left) & (column < left + side)).to(like.dtype)
        sign = _sign(numbers[:, 2:]).reshape(len(numbers), -1, 1, 1).to(like.dtype)
        window: Tensor = sign * down * across
        return window


class _Standing(NamedTuple):
    """Those that no query has fooled yet, a row each."""

    rows: Tensor
    """Where they are in the batch."""
    best: Tensor
    center: Tensor
    y: Tensor
    table: Tensor
    least: Tensor
    """The margin at ``best``."""
    fell: Tensor
    """Whether ``best`` is misclassified: of equal logits the true one may be seen."""


@by_rows
def _stripes(x: Tensor, generator: torch.Generator) -> Tensor:
    size = (len(x), x.shape[1], 1, x.shape[3])
    return _sign(drawn(torch.rand, size, generator, x)).to(x.dtype)


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _look(predict: Predict, params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """z_y − max_{j≠y} z_j, and where x is misclassified: (m,) each."""
    logits = predict(params, x)
    own, others = own_and_others(logits.float(), y)
    margin = own - others.amax(-1)
    return margin, (margin <= 0) & (logits.argmax(-1) != y)
