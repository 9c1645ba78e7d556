"""Progress bars on a terminal; anywhere else the same facts as a plain line every ten seconds.

A bar is one line of any width, and is gone when its work is done: what is worth keeping is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from rich import filesize, progress
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.table import Column
from rich.text import Text

from funcrobust.core.errors import visible

_LOOK_EVERY = 0.2  # seconds between two looks at the values: what an eye can follow
_LINE_EVERY = 10.0  # seconds between two plain lines of one track
_BRIEF = 2.0  # seconds; a track that is done sooner gets no plain line
_GAP = "  "
_FREE_RIGHT = 3  # the terminal's echo of Ctrl-C must not wrap: the bars would be drawn one line off


def format_number(value: Any) -> str:
    """Three significant digits for a float (or a 0-d tensor); whole numbers in full."""
    if isinstance(value, str | int):
        return f"{value:,}" if type(value) is int else visible(str(value))
    number = float(value.detach() if hasattr(value, "detach") else value)
    if number == 0 or 999.5 <= abs(number) < 1e6:
        return f"{number:,.0f}"
    return f"{number:#.3g}".rstrip(".")


class Track:
    """One piece of work under way. Made by :meth:`Reporter.track`.

    Advancing costs about a microsecond: fields are looked at five times a second at most, so a
    tensor on an accelerator (a detached one, please) does not make every step wait for it.
    """

    def __init__(self, bars: Bars, task: progress.Task, write: Callable[[str], None]) -> None:
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
                self._bars.live.transient = error is None  # what was not done stays on screen
                self._bars.stop()
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
        shown = [f"{name} {format_number(value)}" for name, value in self._fields.items()]
        self._bars.update(self.task.id, total=self.total, completed=self.done, shown=shown)


class Bars(progress.Progress):
    """Bars that never wrap: a narrow terminal goes without some columns, and some of the fields."""

    def __init__(self, console: Console) -> None:
        name = Column(no_wrap=True, overflow="ellipsis", max_width=40)
        whole = Column(no_wrap=True)
        self.least_widths: dict[progress.ProgressColumn, int] = {  # of the terminal
            progress.TextColumn("{task.description}", markup=False, table_column=name): 0,
            progress.BarColumn(14, table_column=whole): 50,
            progress.TaskProgressColumn(): 0,
            _Count(table_column=whole): 90,
            _Rate(whole): 100,
            progress.TimeElapsedColumn(whole): 120,
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

    def line(self, task: progress.Task) -> str:
        """Say in one line of text what the bar shows."""
        cells = (column.render(task) for column in self.least_widths)
        said = (str(cell).strip() for cell in cells if isinstance(cell, Text | _Whole))
        return " · ".join(filter(None, said))


class _Count(progress.MofNCompleteColumn):
    _bytes = progress.DownloadColumn()

    def render(self, task: progress.Task) -> Text:
        return self._bytes.render(task) if task.fields["unit"] == "B" else super().render(task)


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        unit, seconds = task.fields["unit"], task.finished_time or task.elapsed or math.inf
        whole = (task.completed - task.fields["initial"]) / seconds
        rate = whole if task.finished else task.speed or whole
        shown = filesize.decimal(int(rate)) if unit == "B" else f"{format_number(rate)} {unit}"
        return Text(f"{shown}/s", "dim")


class _Left(progress.TimeRemainingColumn):
    def render(self, task: progress.Task) -> Text:
        under_way = task.stop_time is None and task.time_remaining
        return super().render(task).append(" left") if under_way else Text()


class _Fields(progress.ProgressColumn):
    def render(self, task: progress.Task) -> _Whole:
        return _Whole(task.fields["shown"])


class _Whole:
    """As many of some texts as there is room for: none is cut. The first cell to be narrowed."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __str__(self) -> str:
        return _GAP.join(self._texts)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self._texts)
        while shown and cell_len(_GAP.join(shown)) > options.max_width:
            shown.pop()
        yield Text(_GAP.join(shown), no_wrap=True)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, cell_len(str(self))).with_maximum(options.max_width)
