"""Lines, tables and progress bars for a person, and the same in plain text for a log file.

Bars are drawn only on a terminal. Anywhere else the same facts come as one plain line every ten
seconds, so that a log stays short and can be searched.
"""

from __future__ import annotations

import io
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TextIO

from rich import box, filesize
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.table import Column, Table
from rich.text import Text

from funcrobust.core.errors import FuncrobustError

_LOOK_EVERY = 0.2  # seconds between two looks at the values: what an eye can follow
_LINE_EVERY = 10.0  # seconds between two plain lines of one track
_BRIEF = 2.0  # seconds; a track that is done sooner gets no plain line
_FREE_RIGHT = 3  # the terminal's echo of Ctrl-C must not wrap: the bars would be drawn one line off


class _Console(Console):
    def on_broken_pipe(self) -> None:  # the reader left; rich would end a training there
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr, plain where nobody watches a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a ψ on a Latin-1 stream comes out as "?"
    # Not rich's own guess: FORCE_COLOR in the environment would put colours into a log.
    return _Console(stderr=stderr, force_terminal=stream.isatty(), force_jupyter=False)


def format_number(value: Any) -> str:
    """Three significant digits for a float (or a 0-d tensor); whole numbers in full."""
    if isinstance(value, str | int):
        return f"{value:,}" if type(value) is int else str(value)
    number = float(value.detach() if hasattr(value, "detach") else value)
    if number == 0 or 999.5 <= abs(number) < 1e6:
        return f"{number:,.0f}"
    return f"{number:#.3g}".rstrip(".")


class _Count(bars.MofNCompleteColumn):
    _bytes = bars.DownloadColumn()

    def render(self, task: bars.Task) -> Text:
        return self._bytes.render(task) if task.fields["unit"] == "B" else super().render(task)


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        unit, seconds = task.fields["unit"], task.finished_time or task.elapsed or math.inf
        whole = (task.completed - task.fields["initial"]) / seconds
        rate = whole if task.finished else task.speed or whole
        shown = filesize.decimal(int(rate)) if unit == "B" else f"{format_number(rate)} {unit}"
        return Text(f"{shown}/s", "dim")


class _Left(bars.TimeRemainingColumn):
    def render(self, task: bars.Task) -> Text:
        under_way = task.stop_time is None and task.time_remaining
        return super().render(task).append(" left") if under_way else Text()


class _Fields(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        # Text that does not wrap, in a column that may: the first to be shortened.
        return Text(task.fields["shown"], no_wrap=True, overflow="ellipsis")


class _Bars(bars.Progress):
    """Bars that never wrap: a narrow terminal goes without some columns."""

    def __init__(self, console: Console) -> None:
        name = Column(no_wrap=True, overflow="ellipsis", max_width=40)
        whole = Column(no_wrap=True)
        self.least_widths: dict[bars.ProgressColumn, int] = {  # of the terminal
            bars.TextColumn("{task.description}", markup=False, table_column=name): 0,
            bars.BarColumn(14, table_column=whole): 50,
            bars.TaskProgressColumn(): 0,
            _Count(table_column=whole): 90,
            _Rate(whole): 100,
            bars.TimeElapsedColumn(whole): 120,
            _Left(compact=True, table_column=whole): 36,
            _Fields(): 50,
        }
        self.screen = console
        off = not console.is_interactive
        # The rate looks two minutes back: one update may take a minute.
        super().__init__(
            console=console, refresh_per_second=5, speed_estimate_period=120, disable=off
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        width = self.screen.width
        self.columns = tuple(c for c, least in self.least_widths.items() if width >= least)
        yield Constrain(self.make_tasks_table(self.tasks), width - _FREE_RIGHT)

    def line(self, task: bars.Task) -> str:
        cells = (column.render(task) for column in self.least_widths)
        return " · ".join(str(cell).strip() for cell in cells if isinstance(cell, Text) and cell)


class Track:
    """One piece of work under way. Made by :meth:`Reporter.track`.

    Advancing costs about a microsecond: fields are looked at five times a second at most, so a
    tensor on an accelerator (a detached one, please) does not make every step wait for it.
    """

    def __init__(self, bars: _Bars, task: bars.Task, write: Callable[[str], None]) -> None:
        self.task, self.total, self.done = task, task.total, int(task.completed)
        self._bars, self._write, self._fields = bars, write, dict[str, Any]()
        self._next_look = bars.get_time() + _LOOK_EVERY
        self._next_line = bars.get_time() + _LINE_EVERY

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            if error is None:  # or else reading a tensor can fail, or wait
                self._look()
        finally:
            self._bars.update(self.task.id, completed=self.done)
            self._bars.stop_task(self.task.id)
            if len(self._bars.tasks) == 1:
                self._bars.stop()  # the last bar stays on screen
            self._bars.remove_task(self.task.id)
        if error is not None or (self.task.elapsed or 0) >= _BRIEF:
            self._write(("stopped: " if error is not None else "") + self._bars.line(self.task))

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count ``n`` more units done and show ``fields`` (numbers, 0-d tensors, text)."""
        self.move_to(self.done + n, **fields)

    def move_to(self, done: int, **fields: Any) -> None:
        """Set the number of units done, for work that reports a total so far."""
        self.done = done
        self._fields.update(fields)
        now = self._bars.get_time()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            self._look()
            if now >= self._next_line and done != self.total:  # the end has a line of its own
                self._next_line = now + _LINE_EVERY
                self._write(self._bars.line(self.task))

    def _look(self) -> None:
        shown = "  ".join(f"{name} {format_number(value)}" for name, value in self._fields.items())
        self._bars.update(self.task.id, total=self.total, completed=self.done, shown=shown)


class Reporter:
    """Says things to a person, and the same in plain text to a log file.

    Square brackets are not markup. A log that fails later (a full disk) is one warning.
    """

    def __init__(self, log_file: Path | None = None, *, console: Console | None = None) -> None:
        """Print to ``console``; where it is None, to what :func:`console` returns."""
        self._console = console or _default_console()
        self._bars = _Bars(self._console)
        self._log: TextIO = io.StringIO()
        self._downloads = ExitStack()
        weakref.finalize(self, self._downloads.close)  # at exit, too: shows the cursor again
        if log_file is not None:
            self.attach(log_file)

    @classmethod
    def silent(cls, log_file: Path | None = None) -> Self:
        """Return a reporter that prints nothing, for library use and tests."""
        return cls(log_file, console=Console(quiet=True, force_terminal=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the screen and close the log file. Safe to call again."""
        self._downloads.close()
        self._log.close()
        self._log = io.StringIO()

    def attach(self, log_file: Path) -> None:
        """Begin (or move) the log; lines said before the first file are written to it too."""
        try:
            log = Path(log_file).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise FuncrobustError(f"cannot write the log {log_file}: {error.strerror}") from error
        before, self._log = self._log, log
        if isinstance(before, io.StringIO):
            self._to_log(before.getvalue(), end="")
        before.close()

    def say(self, text: str = "") -> None:
        """Print one line."""
        self._to_log(text)
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Print one line that begins with ``warning:``."""
        self._to_log(f"warning: {text}")
        self._print(Text.assemble(("warning:", "bold yellow"), " ", text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a title and a table; all columns but the first are set to the right."""
        if any(len(row) != len(columns) for row in rows):
            raise FuncrobustError(f"table {title!r}: not every row has {len(columns)} columns")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for index, name in enumerate(columns):
            table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        text = io.StringIO()
        Console(file=text, width=400, force_terminal=False).print(table)  # no cell is folded
        plain = "\n".join(map(str.rstrip, text.getvalue().splitlines()))
        self._to_log(f"{title}\n{plain}")
        self._print(Text(title, "bold"))
        watched = self._console.is_terminal
        self._console.print(table if watched else Text(plain), soft_wrap=not watched)

    def track(
        self, description: str, total: int | None, unit: str = "it", initial: int = 0
    ) -> Track:
        """Show how far a piece of work is: ``with reporter.track("train", 391) as bar: ...``.

        Tracks nest; the outermost bar stays on screen. ``total`` is None where it is not known, a
        ``unit`` of ``B`` is bytes, ``initial`` was done before and does not count for the rate.
        """
        if not self._bars.tasks:
            self._bars = _Bars(self._console)
        fields: dict[str, Any] = {"unit": unit, "initial": initial, "shown": ""}
        self._bars.add_task(description, total=total, completed=initial, **fields)
        return Track(self._bars, self._bars.tasks[-1], self._write_progress)

    def progress_callback(self, unit: str = "B") -> Callable[[str, int, int | None], None]:
        """Return a function for one download after another: ``(description, done, total)``.

        A bar closes when ``done`` reaches ``total``, or when another description comes.
        """
        track: Track | None = None

        def callback(description: str, done: int, total: int | None) -> None:
            nonlocal track
            over = total is not None and done >= total
            if track is None or track.task.stop_time or track.task.description != description:
                self._downloads.close()
                if over:
                    return  # said already, or nothing to wait for
                track = self._downloads.enter_context(self.track(description, total, unit, done))
            track.total = total
            track.move_to(done)
            if over:
                self._downloads.close()

        return callback

    def _write_progress(self, line: str) -> None:
        self._to_log(line)
        if not self._console.is_interactive:  # a bar says it there
            self._print(Text(line))

    def _print(self, text: Text) -> None:
        # soft_wrap: a path stays in one piece, to be copied or searched for.
        self._console.print(text, soft_wrap=True)

    def _to_log(self, text: str, end: str = "\n") -> None:
        try:
            self._log.write(text + end)
        except OSError as error:
            self._log = io.StringIO()
            self.warn(f"the log file is no longer written: {error.strerror}")


_default_console = console  # the argument of Reporter has the same name
