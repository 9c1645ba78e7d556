"""Lines, tables and progress bars for a person, and the same in plain text for a log file.

A bar is drawn only on a terminal. Anywhere else (a pipe, a batch system's log) the same facts
come as one plain line every ten seconds, so that a log stays short and can be searched.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from funcrobust.errors import FuncrobustError

PLAIN_WIDTH = 100
"""Columns of the output where there is no terminal to ask."""

LINE_EVERY = 10.0
"""Seconds between two plain progress lines of one track."""

_TICK = 0.2  # seconds between two looks at the values: what an eye can follow
_WINDOW = 30.0  # seconds the shown rate looks back, so a slow first step is soon forgotten
_BACKLOG = 10_000  # lines remembered for a log file that is attached later

ProgressCallback = Callable[[str, int, int | None], None]
"""``(description, done, total)``; ``total`` is None where it is not known."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout (or stderr) that is plain where nobody watches a terminal.

    Not a terminal: no colours, no live bars, 100 columns. Characters that the stream's encoding
    does not have (the ψ on a Latin-1 stream) come out as ``?`` instead of ending the program.
    """
    stream = sys.stderr if stderr else sys.stdout
    _replace_unknown_characters(stream)
    if stream.isatty():
        return _Console(stderr=stderr)
    return _Console(
        stderr=stderr, width=PLAIN_WIDTH, no_color=True, force_terminal=False, force_jupyter=False
    )


class _Console(Console):
    """A console whose reader may leave (``| head``, or ``| tee`` at Ctrl-C).

    Rich would end the program there; a training goes on silently, and its last checkpoint is
    still written.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def _replace_unknown_characters(stream: TextIO) -> None:
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    if not encoding.startswith("utf") and isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


# --- numbers as words -------------------------------------------------------------------------


def format_number(value: Any) -> str:
    """Three significant digits for a float (or a 0-d tensor); whole numbers in full."""
    if isinstance(value, str | bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    number = float(value.detach() if hasattr(value, "detach") else value)
    size = abs(number)
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    if size >= 1e6 or size < 1e-4:
        return f"{number:.2e}"
    return f"{number:,.0f}" if size >= 999.5 else f"{number:#.3g}".rstrip(".")


def format_duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from one hour on."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _format_amounts(done: int, total: int | None, unit: str) -> str:
    if unit != "B":
        return f"{done:,}" if total is None else f"{done:,}/{total:,}"
    scale, name = _byte_scale(total or done)
    amount = f"{done / scale:.1f}" if total is None else f"{done / scale:.1f}/{total / scale:.1f}"
    return f"{amount} {name}"


def _byte_scale(count: float) -> tuple[float, str]:
    for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return scale, name
    return 1.0, "B"


def _format_rate(rate: float, unit: str) -> str:
    if rate <= 0:
        return ""
    if unit == "B":
        scale, name = _byte_scale(rate)
        return f"{rate / scale:.1f} {name}/s"
    # Below one a second, "20 s/it" reads better than "0.05 it/s".
    return f"{format_number(rate)} {unit}/s" if rate >= 1 else f"{format_number(1 / rate)} s/{unit}"


# --- one piece of work ------------------------------------------------------------------------


class Track:
    """One piece of work under way. Made by :meth:`Reporter.track`.

    Advancing costs about a microsecond: values are looked at five times a second at most, so a
    field may be a tensor on an accelerator without making every step wait for it. Hand over
    detached tensors; an attached one would keep its graph alive until the next step.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str,
        initial: int,
        clock: Callable[[], float],
        write_line: Callable[[str], None],
    ) -> None:
        """Start the clock. ``write_line`` receives the plain lines."""
        self.description, self.total, self.unit = description, total, unit
        self.done = self._initial = initial
        self._clock, self._write_line = clock, write_line
        self._fields: dict[str, Any] = {}
        self._fields_text = ""
        self._start = self._next_tick = clock()
        self._next_line = self._start + LINE_EVERY
        self._end: float | None = None
        self._samples = deque([(self._start, initial)])

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count ``n`` more units done and show ``fields`` (numbers, 0-d tensors, text)."""
        self.move_to(self.done + n, **fields)

    def move_to(self, done: int, **fields: Any) -> None:
        """Set the number of units done, for work that reports a total so far."""
        self.done = done
        if fields:
            self._fields.update(fields)
        now = self._clock()
        if now >= self._next_tick:
            self._look(now)
            if now >= self._next_line and done != self.total:  # the end has a line of its own
                self._next_line = now + LINE_EVERY
                self._write_line(self._line(now))

    def finish(self, *, stopped: bool = False) -> str:
        """Stop the clock; return the last plain line. ``stopped``: by an error or Ctrl-C."""
        now = self._end = self._clock()
        if not stopped:  # reading a tensor can fail or wait: not while an error is on its way
            self._look(now)
        return self._line(now, stopped=stopped)

    def cells(self) -> dict[str, str]:
        """Return what a bar says, by column: percent, count, rate, elapsed, left, fields."""
        now = self._clock() if self._end is None else self._end
        left = self._seconds_left(now)
        return {
            "percent": "" if self.total is None else f"{self._percent():.0f}%",
            "count": _format_amounts(self.done, self.total, self.unit),
            "rate": _format_rate(self._rate(now), self.unit),
            "elapsed": format_duration(now - self._start),
            "left": "" if left is None else f"{format_duration(left)} left",
            "fields": self._fields_text,
        }

    def _look(self, now: float) -> None:
        self._next_tick = now + _TICK
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()
        self._fields_text = "  ".join(
            f"{name} {format_number(value)}" for name, value in self._fields.items()
        )

    def _line(self, now: float, *, stopped: bool = False) -> str:
        cells = self.cells()
        where = cells["count"] + (f" ({cells['percent']})" if cells["percent"] else "")
        facts = [cells["rate"], f"{format_duration(now - self._start)} elapsed", cells["left"]]
        facts += [cells["fields"]]
        begin = f"{self.description}: {'stopped at ' if stopped else ''}{where}"
        return " · ".join([begin, *filter(None, facts)])

    def _percent(self) -> float:
        # Rounded down, so that 100% is said only when all is done.
        return math.floor(100 * self.done / self.total) if self.total else 100.0

    def _rate(self, now: float) -> float:
        if self._end is not None:  # the whole piece of work, once it is over
            begin, end = (self._start, self._initial), (now, self.done)
        else:
            begin, end = self._samples[0], self._samples[-1]
        seconds = end[0] - begin[0]
        return (end[1] - begin[1]) / seconds if seconds > 0 else 0.0

    def _seconds_left(self, now: float) -> float | None:
        rate = self._rate(now)
        if self.total is None or self._end is not None or rate <= 0:
            return None
        seen_at, seen = self._samples[-1]
        return max(0.0, (self.total - seen) / rate - (now - seen_at))


# --- the bars on a terminal -------------------------------------------------------------------

_COLUMNS = ("percent", "count", "rate", "elapsed", "left", "fields")
_DROP_FIRST = ("elapsed", "rate", "count")  # what a narrow terminal goes without, in order
_BAR_LEAST, _BAR_MOST = 8, 36
_FIELDS_LEAST = 9
_FREE_RIGHT = 3  # the terminal's echo of Ctrl-C must not wrap: the picture would be drawn one off


def _layout(widths: dict[str, int], description: int, width: int) -> tuple[dict[str, int], int]:
    """Choose columns that fit into ``width``: (their widths, the bar's width; 0 is no bar)."""
    chosen = {name: widths[name] for name in _COLUMNS if widths[name]}

    def room() -> int:  # what is left for the bar; one blank after each column
        return width - _FREE_RIGHT - (description + 1) - sum(w + 1 for w in chosen.values())

    for name in _DROP_FIRST:
        if room() < _BAR_LEAST:
            chosen.pop(name, None)
    if room() < _BAR_LEAST and "fields" in chosen:
        chosen["fields"] += room() - _BAR_LEAST
        if chosen["fields"] < _FIELDS_LEAST:
            del chosen["fields"]
    if room() < _BAR_LEAST:
        chosen.pop("left", None)
    return chosen, min(_BAR_MOST, room()) if room() >= _BAR_LEAST else 0


def _picture(tracks: Sequence[Track], width: int) -> Table:
    """Draw one row a track, never wider than ``width``."""
    rows = [track.cells() for track in tracks]
    widths = {name: max((cell_len(row[name]) for row in rows), default=0) for name in _COLUMNS}
    longest = max((cell_len(track.description) for track in tracks), default=0)
    described = max(1, min(longest, width * 2 // 5))
    columns, bar = _layout(widths, described, width)

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=described, no_wrap=True, overflow="ellipsis")
    if bar:
        table.add_column(width=bar, no_wrap=True)
    for name, column_width in columns.items():
        left = name == "fields"
        table.add_column(
            width=column_width,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if left else "right",
            style="" if name in ("percent", "fields") else "dim",
        )
    for track, row in zip(tracks, rows, strict=True):
        cells: list[Text | ProgressBar] = [Text(track.description)]
        if bar:
            cells.append(_bar(track, bar))
        table.add_row(*cells, *(Text(row[name]) for name in columns))
    return table


def _bar(track: Track, width: int) -> ProgressBar:
    total = None if track.total is None else float(track.total or 1)
    done = total if track.total == 0 and total else float(track.done)
    return ProgressBar(total=total, completed=done, width=width, pulse=total is None)


class _Bars:
    """The bars now on screen, all in one live picture: rich draws one at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tracks: list[Track] = []
        self._live: Live | None = None

    def add(self, track: Track) -> None:
        self._tracks.append(track)
        if self._console.is_interactive and self._live is None:
            self._live = Live(
                get_renderable=lambda: _picture(tuple(self._tracks), self._console.width),
                console=self._console,
                refresh_per_second=5,
            )
            self._live.start()

    def remove(self, track: Track) -> None:
        """Take a bar away; the last one stays on screen as it was when it ended."""
        if track not in self._tracks:
            return
        if len(self._tracks) == 1:
            self.stop()
        else:
            self._tracks.remove(track)

    def stop(self) -> None:
        """Give the terminal back: last picture drawn, cursor shown. Safe to call again."""
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()
        finally:
            self._tracks.clear()


# --- what recipes talk to ---------------------------------------------------------------------


class Reporter:
    """Says things to a person, and the same in plain text to a log file.

    Text is printed as it is: square brackets are not markup. Without a log file the last
    10,000 lines are kept, and :meth:`attach` writes them. If the log file fails later (a full
    disk), one warning says so and the run goes on.

    Args:
        log_file: plain text goes to the end of this file; ``None`` for none yet.
        console: where to print; :func:`console` if not given.
        clock: seconds from any origin.

    Raises:
        FuncrobustError: the log file cannot be opened.
    """

    def __init__(
        self,
        log_file: Path | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See the class."""
        self._console = console if console is not None else _default_console()
        self._clock = clock
        self._bars = _Bars(self._console)
        self._log: TextIO | None = None
        self._backlog: deque[str] = deque(maxlen=_BACKLOG)
        self._logging = True
        # A bar left open (a download that failed) must not leave the cursor hidden.
        weakref.finalize(self, self._bars.stop)
        if log_file is not None:
            self.attach(log_file)

    @classmethod
    def silent(cls, log_file: Path | None = None) -> Self:
        """Return a reporter that prints nothing, for library use, tests and other ranks."""
        return cls(log_file, console=Console(file=io.StringIO(), quiet=True, force_terminal=False))

    def __enter__(self) -> Self:
        """Return self; leaving the block closes the bars and the log file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Take the bars off the screen and close the log file. Safe to call again."""
        self._bars.stop()
        if self._log is not None:
            self._log.close()
            self._log, self._logging = None, False

    def attach(self, log_file: Path) -> None:
        """Begin (or move) the log; lines said before the first file are written to it too.

        Raises:
            FuncrobustError: the file cannot be opened for writing.
        """
        try:
            # Stays open as long as the reporter; every line is flushed.
            log = Path(log_file).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise FuncrobustError(f"cannot write the log {log_file}: {error.strerror}") from error
        if self._log is not None:
            self._log.close()
        self._log, self._logging = log, True
        waiting = list(self._backlog)
        self._backlog.clear()
        for line in waiting:
            self._to_log(line)

    def say(self, text: str = "") -> None:
        """Print one line."""
        self._to_log(text)
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Print one line that begins with ``warning:``."""
        self._to_log(f"warning: {text}")
        self._print(Text.assemble(("warning:", "bold yellow"), " ", text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns of numbers are set to the right.

        Raises:
            FuncrobustError: a row has more or fewer cells than there are columns.
        """
        table = _table(title, columns, rows)
        plain = _plain(table)
        self._to_log(plain)
        if self._console.is_terminal:
            self._console.print(table)
        else:
            self._print(Text(plain))

    @contextmanager
    def track(
        self, description: str, total: int | None, unit: str = "it", initial: int = 0
    ) -> Iterator[Track]:
        """Show how far a piece of work is: ``with reporter.track("train", 391) as bar: ...``.

        Tracks nest: on a terminal an inner bar stands under the outer one and goes when it is
        done, the outermost stays on screen. Errors and Ctrl-C pass through with the terminal
        restored.

        Args:
            description: what is being done.
            total: units in all, or ``None`` where it is not known.
            unit: what is counted, as the rate says it (``it``, ``img``, ``B`` for bytes).
            initial: units done before (a resumed run); they do not count for the rate.
        """
        task = self._task(description, total, unit, initial)
        try:
            self._bars.add(task)
            yield task
        except BaseException:
            self._end(task, stopped=True)
            raise
        self._end(task)

    def progress_callback(self, unit: str = "B") -> ProgressCallback:
        """Return a function for one download after another: ``(description, done, total)``.

        A bar appears at the first call and closes when ``done`` reaches ``total``, or when
        another description comes. Where the total is unknown (``None``), end with a call whose
        total is what was done.
        """
        current: Track | None = None
        finished: set[str] = set()

        def callback(description: str, done: int, total: int | None) -> None:
            nonlocal current
            complete = total is not None and done >= total
            if current is not None and current.description != description:
                self._end(current)
                current = None
            if current is None:
                if complete and description in finished:
                    return  # said already
                current = self._task(description, total, unit, done)
                self._bars.add(current)
            current.total = total
            current.move_to(done)
            if complete:
                finished.add(description)
                self._end(current)
                current = None

        return callback

    def _task(self, description: str, total: int | None, unit: str, initial: int) -> Track:
        return Track(description, total, unit, initial, self._clock, self._progress_line)

    def _end(self, task: Track, *, stopped: bool = False) -> None:
        try:
            line = task.finish(stopped=stopped)
        finally:
            self._bars.remove(task)
        self._progress_line(line)

    def _progress_line(self, line: str) -> None:
        self._to_log(line)
        if not self._console.is_interactive:  # the bar says it there
            self._print(Text(line))

    def _print(self, text: Text) -> None:
        # soft_wrap: a path stays in one piece, to be copied or searched for.
        self._console.print(text, soft_wrap=True)

    def _to_log(self, text: str) -> None:
        if self._log is None:
            if self._logging:
                self._backlog.append(text)
            return
        try:
            self._log.write(text + "\n")
            self._log.flush()
        except OSError as error:
            self._log, self._logging = None, False
            self.warn(f"the log file is no longer written: {error.strerror}")


_default_console = console  # the argument of Reporter has the same name


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        numeric = all(_is_numeric(row[index]) for row in rows if index < len(row))
        justify = "right" if numeric and rows else "left"
        table.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        if len(row) != len(columns):
            raise FuncrobustError(
                f"table {title!r}: a row has {len(row)} cells for {len(columns)} columns: {row}"
            )
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _is_numeric(cell: str) -> bool:
    text = str(cell).strip().removesuffix("%").replace(",", "").split("±")[0].strip()
    try:
        float(text)
    except ValueError:
        return text in ("", "-", "–", "—")
    return True


def _plain(table: Table) -> str:
    """Render without colours, wide enough that no cell is folded."""
    text = io.StringIO()
    Console(file=text, width=400, no_color=True, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
