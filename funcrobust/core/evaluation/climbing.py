"""An adversary that climbs: gradient ascent from random starts, no row of a batch left idle.

An example that is fooled leaves at once, its later restarts are never begun, and others take its
rows. Each step's own logits tell, so that looking costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.evaluation.adversary import Run, succeeds
from funcrobust.core.evaluation.slopes import gradient_of
from funcrobust.core.examples import per_example
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.ascent import Ascent, AscentState

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits (B, C), y (B,), aim (B,)) -> (B,)``: what is climbed; above 0 is not needed."""

Aims = Callable[[Tensor, Tensor], Tensor]
"""``(logits (n, C) of the clean images, y (n,)) -> (R, n)``: what each of R restarts aims at."""


@dataclass(frozen=True)
class Climber:
    """R ascents of ``steps`` steps each from random points of the ball, until one succeeds.

    Restart r of an example climbs ``score`` with the number ``aims(...)[r]`` of that example: a
    temperature, a class. What is returned is the first image on the way that succeeds
    (misclassified, or, ``targeted``, classified as y), or else the last ascent's last. Restarts of
    one example may share a batch, so that which of them is first can depend on the batch size;
    whether one succeeds does not.
    """

    ball: Ball
    ascent: Ascent
    steps: int
    score: Score
    aims: Aims
    targeted: bool = False
    """Whether y are targets, and success is to be classified as them."""

    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        standing = torch.ones_like(y, dtype=torch.bool)
        found = x.clone()
        if not len(x):
            return found
        with torch.no_grad():
            batches = zip(x.split(run.batch_size), y.split(run.batch_size), strict=True)
            aims = torch.cat([self.aims(predict(params, a), b) for a, b in batches], dim=1)
        waiting = _queue(len(x), len(aims), x.device)
        rows: _Rows | None = None
        told, all_steps = 0, len(waiting) * self.steps
        while len(waiting) or rows is not None:
            room = run.batch_size - (len(rows.example) if rows is not None else 0)
            if room and len(waiting):
                taken, waiting = waiting[:room], waiting[room:]
                entering = taken[standing[taken[:, 0]]]
                if len(entering):
                    new = self._begin(entering, x, aims, run)
                    rows = new if rows is None else rows.joined_by(new)
            if rows is None:
                continue
            rows = self._leg(predict, params, y, x, rows, standing, found)
            to_go = int(standing[waiting[:, 0]].sum()) * self.steps
            to_go += 0 if rows is None else int(rows.left.sum())
            done = len(x) * (all_steps - to_go) // all_steps
            run.advance(done - told)
            told = done
        run.advance(len(x) - told)
        return found

    def _begin(self, entering: Tensor, x: Tensor, aims: Tensor, run: Run) -> _Rows:
        example, restart = entering.unbind(1)
        start = x[example].clone()
        for r in restart.unique().tolist():
            which = restart == r
            start[which] = run.starts(
                self.ball.sample, x[example[which]], run.numbers[example[which]], r
            )
        left = torch.full_like(example, self.steps)
        return _Rows(example, left, aims[restart, example], self.ascent.init(start))

    def _leg(
        self, predict: Predict, params: Params, y: Tensor, x: Tensor, rows: _Rows,
        standing: Tensor, found: Tensor,
    ) -> _Rows | None:  # fmt: skip
        """Take a few steps of every row; note who is fooled, and by what; return what goes on."""
        here, center = y[rows.example], x[rows.example]
        length = min(LEG.get(x.device.type, 10), int(rows.left.min()))
        state = rows.state
        stood = torch.ones_like(here, dtype=torch.bool)
        caught = state["x"]  # where a row is fooled, the first image that does it
        for _ in range(length):
            looked_at = state["x"]
            state, stands = self.step(predict, params, state, here, rows.aim, center)
            first = per_example(stood & ~stands, caught)
            caught = torch.where(first, looked_at, caught)
            stood &= stands
        left = rows.left - length
        last = left == 0
        ended = (last & stood).nonzero().squeeze(1)
        if len(ended):
            at = state["x"][ended]
            with torch.no_grad():
                stands = ~succeeds(predict(params, at).argmax(-1), here[ended], self.targeted)
            caught = caught.index_copy(0, ended, at)
            stood[ended] = stands
        over = ~stood | last
        found[rows.example[over]] = caught[over]
        # Of two restarts of one example in one batch, either may be the one that fooled it.
        found[rows.example[~stood]] = caught[~stood]
        standing[rows.example[~stood]] = False
        goes_on = ~over & standing[rows.example]
        rows = rows._replace(left=left, state=state)
        if goes_on.all():
            return rows
        return rows.of(goes_on.nonzero().squeeze(1)) if goes_on.any() else None

    def step(
        self, predict: Predict, params: Params, state: AscentState, y: Tensor, aim: Tensor,
        center: Tensor,
    ) -> tuple[AscentState, Tensor]:  # fmt: skip
        """Take one step of every row; tell which of the images looked at withstand."""
        # Not torch.func.grad: it keeps the graph of its own backward pass, which nobody asks for.
        with torch.enable_grad():
            x = state["x"].detach().requires_grad_()
            logits = predict(params, x)
            losses = self.score(logits, y, aim)
            gradient = gradient_of(losses.sum(), x)
        with torch.no_grad():
            state = self.ascent.update(state, losses.detach(), gradient, center)
        return state, ~succeeds(logits.detach().argmax(-1), y, self.targeted)


LEG = {"cpu": 1, "cuda": 10}
"""Steps between two clearings of the batch. On a GPU each clearing waits for the device."""


def _queue(examples: int, restarts: int, device: torch.device) -> Tensor:
    """Return (example, restart) of every ascent, first restarts first: (R·n, 2)."""
    example = torch.arange(examples, device=device).repeat(restarts)
    restart = torch.arange(restarts, device=device).repeat_interleave(examples)
    return torch.stack([example, restart], dim=1)


class _Rows(NamedTuple):
    """Ascents under way, a row each."""

    example: Tensor
    """Its place in the set, (m,)."""
    left: Tensor
    """Steps to go, (m,)."""
    aim: Tensor
    state: AscentState

    def of(self, which: Tensor) -> _Rows:
        return _Rows(
            self.example[which], self.left[which], self.aim[which],
            {name: value[which] for name, value in self.state.items()},
        )  # fmt: skip

    def joined_by(self, other: _Rows) -> _Rows:
        return _Rows(
            torch.cat([self.example, other.example]), torch.cat([self.left, other.left]),
            torch.cat([self.aim, other.aim]),
            {name: torch.cat([value, other.state[name]]) for name, value in self.state.items()},
        )  # fmt: skip
