"""How long a training may be for so many minutes: by a rehearsal on the machine it is to run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.training.updates import State, Update
from funcrobust.report.console import Reporter
from funcrobust.running.dataset import Chosen
from funcrobust.running.measuring import measure
from funcrobust.running.processes import processes

SHARE, LONGEST = 0.04, 60.0
"""Of the budget, what the rehearsal of the update takes, beyond one cycle; seconds at most."""
MARGIN = 0.95
"""The share of the time left that is planned for: a machine has slower spells."""
SAMPLE, SAMPLE_STEPS = 100, 10
"""Images, and steps of each attack on them, behind the cost of measuring."""


class TooShortError(FuncrobustError):
    """Not even the least of a training fits into its minutes."""


@dataclass(frozen=True)
class Budget:
    """So many minutes, from now on, for all of a training: its measurements too."""

    minutes: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.began + 60 * self.minutes - time.monotonic()

    def count(self, each: float, once: float, what: str, smaller: str) -> int:
        """Return how many things of ``each`` seconds fit, beside ``once`` seconds for the rest.

        ``what`` one of them is and what makes it ``smaller`` is said where none fits: that raises
        `TooShortError`.
        """
        # All processes of a run go by the first one's clock.
        n: int = processes().same(int((MARGIN * self.left - once) / each))
        if n < 1:
            least = (60 * self.minutes - self.left + each + once) / MARGIN / 60
            raise TooShortError(
                f"--minutes {self.minutes:g} is too short: {what} alone takes {each:.0f} s on this "
                f"machine, and all around it {once:.0f}: about --minutes {least:.1f}, or {smaller}"
            )
        return n


def update_seconds(
    update: Update, batch: Callable[[int], Any], state: State, budget: Budget, cycle: int = 1
) -> float:
    """Return what an update takes, with its batch: the mean of whole cycles of ``cycle`` of them.

    The state is not changed: updates are pure.
    """
    shard, alone = processes().shard, processes().size == 1

    def one(state: State, step: int) -> State:
        after, metrics = update(state, shard.rows(batch(step)))
        for value in metrics.values():
            float(value)  # waits for a GPU
        return after

    state = one(one(state, 0), 1)  # the first ones allocate, and choose their kernels
    step = 2 + -2 % cycle
    lasts = min(SHARE * 60 * budget.minutes, LONGEST)
    began = time.perf_counter()
    done = 0
    while not done or time.perf_counter() - began < lasts:
        for _ in range(cycle):
            if done and alone and budget.left < 0:
                return (time.perf_counter() - began) / done
            state, step, done = one(state, step), step + 1, done + 1
        if not alone:
            break  # as often on all of them
    return (time.perf_counter() - began) / done


def measure_seconds(predict: Predict, params: Params, images: Chosen, ball: Ball) -> float:
    """Return what `measure` takes for one image and one step of its attacks, all at a time."""
    began = time.perf_counter()
    measure(
        predict, params, images, Reporter.silent(), ball=ball, steps=SAMPLE_STEPS, seed=0,
        title="", batch_size=len(images.y),
    )  # fmt: skip
    return (time.perf_counter() - began) / len(images.y) / SAMPLE_STEPS
