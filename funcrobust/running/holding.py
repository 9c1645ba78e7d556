"""A run is one process's from its beginning to its end: opened, locked, rescued, concluded."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from funcrobust.checkpoints.format import copies
from funcrobust.checkpoints.locate import CHECKPOINT, STATE, STATE_BEFORE, STATE_RECORDED
from funcrobust.checkpoints.state import write_state
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.training.updates import State
from funcrobust.files import WriteError, atomic_write
from funcrobust.report.console import Reporter
from funcrobust.report.records import Record, as_json, as_line
from funcrobust.report.runs import CONFIG, METRICS, REPORT, RunFolder, Status, require_free
from funcrobust.running.config import program, resumed, resumption, said, to_config
from funcrobust.running.groups import Run
from funcrobust.running.inputs import record_moves, require_inputs
from funcrobust.running.option import options_of
from funcrobust.running.options import command_name
from funcrobust.running.processes import processes
from funcrobust.running.run_report import RunReport
from funcrobust.running.state import Kept, Position, load_position, pack
from funcrobust.running.stops import Stops

SomeRun = TypeVar("SomeRun", bound=Run)


@dataclass(frozen=True)
class Held(Generic[SomeRun]):
    """A run that no other process may write: the options it has, and its folder once it is open."""

    options: SomeRun
    """Those of the run to resume."""
    _until_the_end: ExitStack

    def require(self, options: SomeRun, inputs: Mapping[str, str]) -> None:
        """Refuse to resume a run with what it did not begin with, before any of it is loaded."""
        if options.resume is not None:
            require_inputs(RunFolder.open(options.resume), options, inputs)

    def open(
        self, options: SomeRun, state: State, reporter: Reporter, inputs: Mapping[str, str],
        steps: int,
    ) -> tuple[RunFolder, Position]:  # fmt: skip
        """Make the run's folder, with ``options``; or find where the one to resume is.

        ``state`` is the one to begin from, ``inputs`` what `inputs` finds, which `require` has been
        asked about, ``steps`` the run's updates in all.

        Raises `FuncrobustError` for a run whose states are damaged.
        """
        if options.resume is None:
            command = command_name(type(options))
            run = RunFolder.create(options.out, command, to_config(options), options.name, inputs)
            self._until_the_end.enter_context(run.locked())
            self._until_the_end.push(partial(_tell_how_to_go_on, run, reporter))
            return run, Position(state)
        run = RunFolder.open(options.resume)
        self._until_the_end.push(partial(_tell_how_to_go_on, run, reporter))
        record_moves(run, options)
        position = load_position(run, state, reporter, steps)
        if position is None:
            reporter.say(f"{run.path} has saved no state yet: beginning at step 0")
            position = Position(state)
        step = position.step
        run.truncate_metrics(lambda record: record["step"] <= step)
        return run, position


def _tell_how_to_go_on(
    run: RunFolder, reporter: Reporter, kind: type[BaseException] | None, *_: object
) -> None:
    """Say it where an open run is left by Ctrl-C: outside of `drive` and `conclude`, who do."""
    if kind is not None and issubclass(kind, KeyboardInterrupt) and (run.path / CONFIG).exists():
        reporter.warn(f"{run.path} is begun, and kept. Continue with", command=resumption(run))


@contextmanager
def hold(options: SomeRun) -> Iterator[Held[SomeRun]]:
    """Hold a run for this process; what cannot be begun or resumed is refused before all work.

    Raises `FuncrobustError` for a name that is taken, and for a run to resume that is complete or
    under way in another process.
    """
    _require_text(options)
    here = processes()
    with ExitStack() as stack:
        if not here.first:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = _spectating(options, folder, here.same(None))
        found = resumed(options)
        if options.resume is not None:
            run = RunFolder.open(options.resume)
            if (result := run.result()) is not None:
                raise FuncrobustError(
                    f"{options.resume} is complete ({result.get('status')} after "
                    f"{result.get('step')} updates): there is nothing left to resume"
                )
            stack.enter_context(run.locked())
        elif options.name is not None:
            require_free(Path(options.out), options.name)
        if here.first:
            here.same(_files(options.resume))
        yield Held(found, stack)


_CARRIED = (CONFIG, METRICS, STATE, STATE_BEFORE, STATE_RECORDED)


def _files(folder: Path | None) -> dict[str, bytes] | None:
    """Return what a run is resumed from."""
    if folder is None or processes().size == 1:
        return None
    there = {name: folder / name for name in _CARRIED}
    return {name: path.read_bytes() for name, path in there.items() if path.is_file()}


def _spectating(options: SomeRun, folder: Path, files: dict[str, bytes] | None) -> SomeRun:
    """Give a process that is not the first a folder of its own, which nobody sees.

    A run to resume is copied there, so that the machines need no folder in common.
    """
    if files is None:
        return replace(options, out=folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return type(options)(**{**said(options), "resume": folder})


def _require_text(options: Run) -> None:
    """Refuse stray bytes: they could be written into no card, log or picture's title."""
    for name, option in options_of(type(options)).items():
        value = getattr(options, name)
        for text in map(str, value if isinstance(value, tuple | dict) else [value]):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise FuncrobustError(
                    f"{option.flag} {text!a} is not UTF-8: rename what it names, or link to it"
                ) from None


@dataclass(frozen=True)
class Result:
    """What a training hands back: its folder, how it ended, its final figures."""

    run: RunFolder
    status: Status
    metrics: dict[str, float]


def conclude(
    run: RunFolder, status: Status, position: Position, reporter: Reporter, kept: Kept,
    save: Callable[[], None], finish: Callable[[], dict[str, float]], report: RunReport,
) -> Result:  # fmt: skip
    """Let ``save`` leave a checkpoint and ``finish`` evaluate and draw; say what is complete.

    ``report`` says it last. Where a signal comes before all is done, or the training was
    interrupted, the run can be resumed, to do this again. A folder that has been deleted is
    rescued.
    """
    records, metrics = run.metrics(), None
    try:
        with Stops() as stops, stops.at_once():
            run.require_there()
            save()
            if status != "interrupted":
                metrics = finish()
                run.conclude({"status": status, "step": position.step, "metrics": metrics})
    except KeyboardInterrupt:
        pass
    except WriteError as error:
        if (run.path / CONFIG).exists():
            command = resumption(run)
            raise FuncrobustError(f"{error}; the training itself is saved: {command}") from error
        raise rescued(run, records, position, kept, error) from error
    if run.result() is not None and metrics is not None:  # though a signal came after
        report.end(status, position.step)
        return Result(run, status, metrics)
    report.end("interrupted", position.step)
    there = run.file(CHECKPOINT)
    held = f"{there} holds the parameters as they are" if there.exists() else "all is saved"
    reporter.warn(f"interrupted: {held}. Continue with", command=resumption(run))
    return Result(run, "interrupted", {})


def say_what_is_next(run: RunFolder, reporter: Reporter, *commands: str) -> None:
    """Say where a finished run's files are, and the commands that one may want next.

    ``{run}`` in a command is the run's folder; the table of all runs comes last.
    """
    reporter.say(f"in {run.path}: {REPORT}, {CHECKPOINT}, pictures. Next:")
    folder, others = (shlex.quote(str(path)) for path in (run.path, run.path.parent))
    for command in (*commands, f"runs --out {others}"):
        reporter.say(f"  {program()} {command.replace('{run}', folder)}", whole=True)


def _name_of(path: Path) -> str:
    """Return a folder's own name, which ``.`` is not; who has gone leaves none."""
    with suppress(OSError):
        return path.resolve().name or "run"
    return "run"


def rescued(
    run: RunFolder, records: Sequence[Record], position: Position, kept: Kept | None,
    error: WriteError,
) -> FuncrobustError:  # fmt: skip
    """Write a run that can no longer be written where it is to a temporary folder.

    Return the error to raise, which says where it is now and how to go on.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="funcrobust-")) / _name_of(run.path)
        folder.mkdir()
        tensors, meta = pack(position, kept)
        write_state(folder / STATE, copies(tensors, folder / STATE), meta)
        lines = b"".join(map(as_line, records))
        atomic_write(folder / METRICS, lines)
        atomic_write(folder / CONFIG, as_json(run.record))
    except (OSError, FuncrobustError) as another:
        return FuncrobustError(
            f"{error}; nor can its state at step {position.step} be written elsewhere ({another}); "
            f"what was saved before is in {run.path}: {resumption(run)}"
        )
    return FuncrobustError(
        f"{error}. The run as it is at step {position.step} is in {folder}: "
        f"{resumption(run, folder)}"
    )
