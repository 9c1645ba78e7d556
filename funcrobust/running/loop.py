"""Drive a pure update over a run: progress, records, safe stops, exact resumption.

A batch is a function of the step number alone (counted randomness), and the sums of an epoch's
metrics travel with the state: a run continued from any saved state goes on to the same bits, and
to the same records.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import Tensor

from funcrobust.checkpoints.locate import STATE, STATE_RECORDED
from funcrobust.core.balls.ball import known_inside
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.core.training.updates import State, Update, device_of
from funcrobust.files import WriteError, also_named
from funcrobust.report.console import Reporter
from funcrobust.report.records import as_line, is_share, parse_line
from funcrobust.report.runs import RunFolder, Status
from funcrobust.report.sinks import Sink
from funcrobust.running.collapse import Figures, collapse, is_watched
from funcrobust.running.config import resumption
from funcrobust.running.holding import rescued
from funcrobust.running.processes import is_loss_of_another, processes
from funcrobust.running.state import (
    Kept,
    Position,
    Writer,
    load_recorded,
)
from funcrobust.running.stops import StopNow, Stops


@dataclass(frozen=True)
class Plan:
    """What to run. ``batch(step)`` gives the update's batch; ``examine(epoch, state)`` measures."""

    update: Update
    """Eager, compiled or replayed."""
    batch: Callable[[int], Any]
    steps: int
    steps_per_epoch: int
    """Updates between two records; the last stretch may be shorter."""
    batch_size: int
    examine: Callable[[int, State], Figures]
    unit: str = "epoch"
    """What a stretch between two records is called."""
    enough: Callable[[Figures], bool] = lambda _: False
    """Whether a record says that the run has reached its aim and may end early."""
    watched: int = 0
    """Training images behind a record's figures, which are then watched for a `collapse`; 0: none
    are."""
    save_every: float = 60.0
    """Seconds between two saves within an epoch."""
    kept: Kept | None = None
    """What makes a checkpoint of the states saved; None: nothing does."""
    report: Callable[[int, str], None] = lambda _step, _left: None
    """Told where the run is and how long it takes yet: at its beginning, when a state is saved and
    when a record is made."""

    @property
    def epochs(self) -> int:
        """Stretches in all."""
        return -(-self.steps // self.steps_per_epoch)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the state worth keeping."""

    position: Position
    status: Status

    @property
    def state(self) -> State:
        """The state worth keeping."""
        return self.position.state


def drive(plan: Plan, start: Position, run: RunFolder, reporter: Reporter, sink: Sink) -> Outcome:
    """Run ``plan`` from ``start`` (any step) to its end, or to the first reason to stop.

    After every epoch: a line in metrics.jsonl. The state is saved every `Plan.save_every` seconds,
    and at an epoch's end before it is examined. A first signal (see `Stops`) stops after the update
    and saves; while examining, at once. A loss that is not finite, or a collapse of robustness,
    stops with the last good state. A folder that cannot be written any more raises
    `FuncrobustError`, which says where the run was rescued to.
    """
    driven = _Driven(plan, start, run, reporter, sink)
    try:
        with Stops() as stops, Writer(run, plan.save_every, plan.kept) as writer:
            try:
                outcome = _through(driven, writer, stops)
            except StopNow:
                raise
            except KeyboardInterrupt:  # raised by what is composed here, or in another thread
                stops.asked = True
            except RuntimeError as error:
                if not is_loss_of_another(error):
                    raise
                raise _left_alone(driven, writer) from error
            if stops.asked:  # whatever the verdict is, it will be the same on resuming
                writer.save(driven.position)
                writer.wait()
                return Outcome(driven.position, "interrupted")
            return outcome
    except WriteError as error:
        raise rescued(run, driven.records, driven.position, plan.kept, error) from error


def _left_alone(driven: _Driven, writer: Writer) -> FuncrobustError:
    """Save what this process has, where another of the run has ended."""
    writer.save(driven.position)
    writer.wait()
    return FuncrobustError(
        f"another process of the run has ended; its state at step {driven.position.step} is saved: "
        f"{resumption(driven.run)}, on as many processes as you like"
    )


class _Driven:
    """What of a run changes as it is driven."""

    def __init__(
        self, plan: Plan, start: Position, run: RunFolder, reporter: Reporter, sink: Sink
    ) -> None:
        self.plan, self.start, self.run, self.reporter, self.sink = plan, start, run, reporter, sink
        self.records = [_read_back(record) for record in run.metrics()]
        self.position = start
        self.recorded: State | None = None
        """The state of the last record that `tells`, where this session has made it."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.start.seconds + time.monotonic() - self._began

    @property
    def left(self) -> str:
        """The time left of the whole run, at the pace of this session; examinations included."""
        done = self.position.step - self.start.step
        if not done:
            return ""
        pace = (time.monotonic() - self._began) / done
        days = min(pace * (self.plan.steps - self.position.step) / 86400, 999_999)
        return f"{timedelta(seconds=round(86400 * days))} left"

    @property
    def epochs(self) -> int:
        return max((int(record["epoch"]) for record in self.records), default=0)

    def last_recorded(self, record: int) -> State | None:
        """Return the state of a record, counted from the end, if it is kept anywhere.

        Where training images are watched, of those records alone that looked at them: the others
        do not tell a good state from a collapsed one.
        """
        if self.recorded is not None:
            return self.recorded
        records = self.telling
        if len(records) < record or not records[-record]["epoch"]:
            return None
        return load_recorded(self.run, self.start.state, int(records[-record]["step"]))

    def tells(self, record: Figures) -> bool:
        """Whether the record says if its state is one to keep."""
        return not self.plan.watched or is_watched(record)

    @property
    def telling(self) -> list[Figures]:
        return list(filter(self.tells, self.records))

    def tell(self) -> None:
        self.plan.report(self.position.step, self.left)

    def log(self, record: Figures) -> None:
        self.run.log(record)
        self.records.append(_read_back(parse_line(as_line(record)) or {}))


def _read_back(record: Mapping[str, Any]) -> Figures:
    """Return a record as a later session finds it; what was NaN is NaN again."""
    return {name: math.nan if value is None else value for name, value in record.items()}


def _through(driven: _Driven, writer: Writer, stops: Stops) -> Outcome:
    if ended := _begin(driven):
        return ended
    driven.tell()
    while driven.epochs < driven.plan.epochs:
        try:
            _update(driven, writer, stops)
        except _DivergedError as stop:
            driven.reporter.warn(f"{stop}; training stopped, keeping the last good parameters")
            return _outcome(driven, driven.last_recorded(1) or stop.good, "diverged")
        writer.save(driven.position)
        record = None if stops.asked else _examined(driven, stops)
        writer.wait()  # a record is of a state that is on disk
        if record is None:
            break
        _record(driven, record)
        if ended := _ended(driven):
            return ended
        _keep_recorded(driven)
        if stops.asked:
            break
    return _outcome(driven, driven.position.state, "finished")


def _begin(driven: _Driven) -> Outcome | None:
    """Take up a run whose last record is of the very state it is in: its sums are in that record.

    It may have ended there, or been killed before the state was kept as the record's.
    """
    records, at = driven.records, driven.position
    if not records or records[-1]["step"] != at.step:
        return None
    driven.position = Position(at.state, seconds=at.seconds)
    if not driven.epochs:
        return None
    if ended := _ended(driven):
        return ended
    _keep_recorded(driven)
    return None


def _examined(driven: _Driven, stops: Stops) -> Figures | None:
    """Return the record of the epoch just done; None if a signal came: it is made on resuming."""
    try:
        with stops.at_once():
            found = driven.plan.examine(driven.epochs, driven.position.state)
    except StopNow:
        raise
    except KeyboardInterrupt:
        return None
    record: Figures = processes().same(_mean(driven.position) | found)
    return record


def _record(driven: _Driven, record: Figures) -> None:
    epoch, at = driven.epochs, driven.position
    numbered = {"epoch": epoch + 1, "step": at.step, **record}
    driven.log(numbered)
    try:
        driven.sink(numbered)
    except Exception as error:  # another library's, over a network or a full disk
        driven.reporter.warn(f"records go to metrics.jsonl alone from here: {one_line(error)}")
        driven.sink = lambda _: None
    driven.reporter.say(_line(driven.plan, epoch, record))
    driven.position = Position(at.state, seconds=driven.seconds)
    driven.tell()


def _ended(driven: _Driven) -> Outcome | None:
    """Tell whether the last record is one to stop at."""
    plan, state = driven.plan, driven.position.state
    if plan.watched and (found := collapse(driven.records, plan.watched)):
        driven.reporter.warn(
            f"{found}; keeping the parameters of epoch {driven.telling[-2]['epoch']}"
        )
        return _outcome(driven, driven.last_recorded(2) or driven.start.state, "collapsed")
    return _outcome(driven, state, "finished") if plan.enough(driven.records[-1]) else None


def _outcome(driven: _Driven, state: State, status: Status) -> Outcome:
    return Outcome(Position(state, seconds=driven.seconds), status)


def _keep_recorded(driven: _Driven) -> None:
    """Keep the state of the record just made, which is the newest on disk, if it is a good one."""
    if not driven.tells(driven.records[-1]):
        return
    driven.recorded = driven.position.state
    also_named(driven.run.file(STATE), driven.run.file(STATE_RECORDED))


class _DivergedError(Exception):
    def __init__(self, name: str, step: int, good: State) -> None:
        super().__init__(f"{name} became NaN or infinite at step {step}")
        self.good = good


def _update(driven: _Driven, writer: Writer, stops: Stops) -> None:
    """Update through one epoch, or what is left of it, or until asked to stop."""
    plan, at, epoch = driven.plan, driven.position, driven.epochs
    end = min((epoch + 1) * plan.steps_per_epoch, plan.steps)
    # Reading a number off a GPU waits for it: there, look at the metrics only now and then.
    device, here = device_of(at.state), processes()
    every = 1 if device.type == "cpu" else 50
    good = at.state
    title = f"{plan.unit} {epoch + 1}/{plan.epochs}"
    total = (end - at.step) * plan.batch_size
    with driven.reporter.track(title, total=total, unit="img") as bar:
        for step in range(at.step, end):
            if step % every == 0:  # all of a run's processes stop at one step
                stops.asked = here.any(stops.asked, device)
            if stops.asked and (here.size == 1 or step % every == 0):
                return
            before = driven.position
            with known_inside():  # as the batch was that the update was prepared with
                after, metrics = plan.update(before.state, here.shard.rows(plan.batch(step)))
            shown = dict[str, Any]()
            if (step + 1) % every == 0 or step + 1 == end:
                shown = {name: float(m) for name, m in metrics.items()}
                for name, value in shown.items():
                    if not math.isfinite(value):
                        raise _DivergedError(name, step, good)
                good = before.state
                # Not the state after, whose loss nobody has seen: a state saved is a good one.
                if writer.due():
                    writer.save(before)
                    driven.tell()
            driven.position = _further(before, after, metrics, driven.seconds)
            bar.advance(plan.batch_size, run=driven.left, **shown)


def _further(at: Position, after: State, metrics: dict[str, Tensor], seconds: float) -> Position:
    """Add an update's metrics to the sums. Not all come at every update: they have counts each."""
    sums = {**at.sums, **{name: at.sums.get(name, 0.0) + m for name, m in metrics.items()}}
    counts = {**at.counts, **{name: at.counts.get(name, 0) + 1 for name in metrics}}
    return Position(after, sums, counts, seconds)


def _mean(position: Position) -> Figures:
    """The loss first, the others by name: which update has which metrics first is chance."""
    names = sorted(position.sums, key=lambda name: (name != "loss", name))
    return {name: float(position.sums[name] / position.counts[name]) for name in names}


def _line(plan: Plan, epoch: int, record: Figures) -> str:
    facts = "  ".join(
        f"{name} {value:.1%}" if is_share(name) else f"{name} {value:.4g}"
        for name, value in record.items()
    )
    return f"{plan.unit} {epoch + 1}/{plan.epochs}  {facts}"
