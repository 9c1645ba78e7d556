"""Drive a pure update over a run: progress, records, safe stops, exact resumption.

A batch is a function of the step number alone (counted randomness), so a run continued from any
saved state goes on to the same bits.
"""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.training.updates import State, Update
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.report.sinks import Sink
from funcrobust.running.collapse import Record, collapse
from funcrobust.running.state import save_state


@dataclass(frozen=True)
class Plan:
    """What to run. ``batch(step)`` gives the update's batch; ``examine(epoch, state)`` measures."""

    update: Update
    """Eager or compiled."""
    batch: Callable[[int], Any]
    steps: int
    steps_per_epoch: int
    """Updates between two records; the last stretch may be shorter."""
    batch_size: int
    examine: Callable[[int, State], Record]
    unit: str = "epoch"
    """What a stretch between two records is called."""
    enough: Callable[[Record], bool] = lambda _: False
    """Whether a record says that the run has reached its aim and may end early."""
    watched: int = 0
    """Training images behind a record's figures, which are then watched for a `collapse`; 0: none
    are."""

    @property
    def epochs(self) -> int:
        """Stretches in all."""
        return -(-self.steps // self.steps_per_epoch)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the state worth keeping."""

    state: State
    status: str
    """ "finished", "interrupted", "collapsed" or "diverged"."""


@dataclass(frozen=True)
class Result:
    """What a training hands back: its folder, how it ended (as `Outcome`), its final figures."""

    run: RunFolder
    status: str
    metrics: dict[str, float]


def drive(plan: Plan, state: State, run: RunFolder, reporter: Reporter, sink: Sink) -> Outcome:
    """Run ``plan`` from ``state`` (any step) to its end, or to the first reason to stop.

    After every epoch: a line in metrics.jsonl and the full state in state.safetensors. Ctrl-C
    and SIGTERM stop after saving; a loss that is not finite, or a collapse of robustness, stops
    with the last good state.
    """
    kept = state
    done = int(state.step)
    try:
        with _sigterm_as_interrupt():
            for epoch in range(_epochs_recorded(run), plan.epochs):
                state, record = _epoch(plan, epoch, state, reporter)
                record |= plan.examine(epoch, state)
                numbered = {"epoch": epoch + 1, "step": int(state.step), **record}
                run.log(numbered)
                sink(numbered)
                reporter.say(_line(plan, epoch, record))
                if plan.watched and (found := collapse(run.metrics(), plan.watched)):
                    reporter.warn(f"{found}; keeping the parameters of the epoch before")
                    return Outcome(kept, "collapsed")
                kept = state
                save_state(run, state)
                if plan.enough(record):
                    break
    except _DivergedError as stop:
        reporter.warn(f"{stop}; training stopped, keeping the last good parameters")
        return Outcome(kept if int(kept.step) > done else stop.good, "diverged")
    except _InterruptedRunError as stop:  # within an epoch
        save_state(run, stop.state)
        return Outcome(stop.state, "interrupted")
    except KeyboardInterrupt:  # while examining: the epoch's record is made again on resuming
        save_state(run, state)
        return Outcome(state, "interrupted")
    return Outcome(state, "finished")


class _DivergedError(Exception):
    def __init__(self, name: str, step: int, good: State) -> None:
        super().__init__(f"{name} became NaN or infinite at step {step}")
        self.good = good


class _InterruptedRunError(Exception):
    def __init__(self, state: State) -> None:
        super().__init__("interrupted")
        self.state = state


def _epoch(plan: Plan, epoch: int, state: State, reporter: Reporter) -> tuple[State, Record]:
    """Update through one epoch (or what is left of it); the record holds the metrics' means."""
    first = int(state.step)
    end = min((epoch + 1) * plan.steps_per_epoch, plan.steps)
    # Reading a number off a GPU waits for it: there, look at the metrics only now and then.
    every = 1 if _device(state).type == "cpu" else 50
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()  # regularisers may come at every k-th update alone
    good = state
    title = f"{plan.unit} {epoch + 1}/{plan.epochs}"
    try:
        with reporter.track(title, total=(end - first) * plan.batch_size, unit="img") as bar:
            for step in range(first, end):
                after, metrics = plan.update(state, plan.batch(step))
                sums |= {name: sums.get(name, 0.0) + m for name, m in metrics.items()}
                counts.update(metrics.keys())
                shown = {}
                if (step + 1) % every == 0 or step + 1 == end:
                    shown = {name: float(m) for name, m in metrics.items()}
                    for name, value in shown.items():
                        if not math.isfinite(value):
                            raise _DivergedError(name, step, good)
                    good = state
                state = after
                bar.advance(plan.batch_size, **shown)
    except KeyboardInterrupt:
        raise _InterruptedRunError(state) from None
    return state, {name: float(total) / counts[name] for name, total in sums.items()}


def _epochs_recorded(run: RunFolder) -> int:
    return max((int(record["epoch"]) for record in run.metrics()), default=0)


def _device(state: State) -> torch.device:
    return next(iter(state.params.values())).device


def _line(plan: Plan, epoch: int, record: Record) -> str:
    shares = ("accuracy", "_clean", "_robust", "_worst")
    facts = "  ".join(
        f"{name} {value:.1%}" if f"_{name}".endswith(shares) else f"{name} {value:.4g}"
        for name, value in record.items()
    )
    return f"{plan.unit} {epoch + 1}/{plan.epochs}  {facts}"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread: there is no handler to set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
