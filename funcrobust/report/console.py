"""Lines and tables for a person, and the same in plain text for a log file.

Bars are drawn only on a terminal: a log stays short and can be searched.
"""

from __future__ import annotations

import io
import os
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.report.bars import Bars, Track


class _Console(Console):
    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # the terminal was closed, or the disk that stdout goes to is full
            self.on_broken_pipe()

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


class Reporter:
    """Says things to a person, and the same in plain text to a log file.

    Square brackets are not markup, and characters that a terminal would obey are spelled out:
    texts may come from files. On a terminal a long line is broken between words; elsewhere, and in
    the log, it is one line. A log that fails later (a full disk) is one warning.
    """

    def __init__(
        self, log_file: Path | None = None, *, console: Console | None = None, quiet: bool = False
    ) -> None:
        """Print to ``console``; where it is None, to what :func:`console` returns.

        If ``quiet``, print warnings alone, and these to stderr.
        """
        self._console = console or (_mute() if quiet else _default_console())
        self._for_warnings = _default_console(stderr=True) if quiet else self._console
        self._bars = Bars(self._console)
        self._log: TextIO = io.StringIO()
        self._downloads = ExitStack()
        weakref.finalize(self, self._downloads.close)  # at exit, too: shows the cursor again
        if log_file is not None:
            self.attach(log_file)

    @classmethod
    def silent(cls, log_file: Path | None = None) -> Self:
        """Return a reporter that prints nothing, for library use and tests."""
        return cls(log_file, console=_mute())

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
            log = Path(log_file).open(  # noqa: SIM115
                "a", encoding="utf-8", errors="backslashreplace", buffering=1
            )
        except OSError as error:
            raise FuncrobustError(f"cannot write the log {log_file}: {error.strerror}") from error
        before, self._log = self._log, log
        if isinstance(before, io.StringIO):
            self._to_log(before.getvalue(), end="")
        before.close()

    def say(self, text: str = "", *, whole: bool = False) -> None:
        """Print one line; ``whole``: never broken by us, as it is to be copied."""
        text = visible(text)
        self._to_log(text)
        self._print(Text(text), whole=whole)

    def warn(self, text: str, *, command: str = "") -> None:
        """Print one line that begins with ``warning:``, and a command on a line of its own."""
        text, command = visible(text), visible(command)
        self._to_log("\n".join(filter(None, (f"warning: {text}", command))))
        self._print(Text.assemble(("warning:", "bold yellow"), " ", text), on=self._for_warnings)
        if command:
            self._print(Text(command), on=self._for_warnings, whole=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a title and a table; all columns but the first are set to the right."""
        if any(len(row) != len(columns) for row in rows):
            raise FuncrobustError(f"table {title!r}: not every row has {len(columns)} columns")
        title, columns = visible(title), [visible(name) for name in columns]
        rows = [[visible(cell) for cell in row] for row in rows]
        table = _table(columns, rows)
        text = io.StringIO()
        Console(file=text, width=400, force_terminal=False).print(table)  # no cell is folded
        plain = "\n".join(map(str.rstrip, text.getvalue().splitlines()))
        self._to_log(f"{title}\n{plain}")
        self._print(Text(title, "bold"))
        watched = self._console.is_terminal
        fitting = _table(columns, rows, self._console.width)
        self._console.print(fitting if watched else Text(plain), soft_wrap=not watched)

    def track(
        self, description: str, total: int | None, unit: str = "it", initial: int = 0
    ) -> Track:
        """Show how far a piece of work is: ``with reporter.track("train", 391) as bar: ...``.

        Tracks nest; the outermost bar stays on screen. ``total`` is None where it is not known, a
        ``unit`` of ``B`` is bytes, ``initial`` was done before and does not count for the rate.
        """
        description = visible(description)
        if not self._bars.tasks:
            self._bars = Bars(self._console)
        fields: dict[str, Any] = {"unit": unit, "initial": initial, "shown": ()}
        self._bars.add_task(description, total=total, completed=initial, **fields)
        return Track(self._bars, self._bars.tasks[-1], self._write_progress)

    def progress_callback(self) -> Callable[[str, int, int | None], None]:
        """Return a function for one download after another: ``(description, done, total)``.

        A bar closes when ``done`` reaches ``total``, or when another description comes.
        """
        track: Track | None = None

        def callback(description: str, done: int, total: int | None) -> None:
            nonlocal track
            description = visible(description)
            over = total is not None and done >= total
            if track is None or track.task.stop_time or track.task.description != description:
                self._downloads.close()
                if over:
                    return  # said already, or nothing to wait for
                track = self._downloads.enter_context(self.track(description, total, "B", done))
            track.total = total
            track.move_to(done)
            if over:
                self._downloads.close()

        return callback

    def _write_progress(self, line: str) -> None:
        self._to_log(line)
        if not self._console.is_interactive:  # a bar says it there
            self._print(Text(line))

    def _print(self, text: Text, *, on: Console | None = None, whole: bool = False) -> None:
        console = on or self._console
        if console.is_terminal and not whole:
            text = folded(text, console.width)
        # soft_wrap: a path stays in one piece, to be copied or searched for.
        console.print(text, soft_wrap=True)

    def _to_log(self, text: str, end: str = "\n") -> None:
        try:
            self._log.write(text + end)
        except OSError as error:
            self._log = io.StringIO()
            self.warn(f"the log file is no longer written: {error.strerror}")


_default_console = console  # the argument of Reporter has the same name


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 400) -> Table:
    """Build a table whose cells are broken between words, if there is any room for that."""
    cells = list(zip(columns, *rows, strict=True))
    whole, words = (
        [max(map(measure, column), default=0) for column in cells]
        for measure in (cell_len, _longest)
    )
    gap = 3 if sum(words) + 3 * len(columns) <= width else 1
    widths = _shared(whole, words, width - gap * len(columns))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, (gap - 1) // 2))
    for index, (name, room) in enumerate(zip(columns, widths, strict=True)):
        justify: JustifyMethod = "right" if index else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", width=room)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _shared(whole: Sequence[int], least: Sequence[int], room: int) -> Sequence[int | None]:
    """Give every column the least it needs, and what is left to those that need little more.

    Where there is no room for the least, rich is left to it.
    """
    if sum(least) > room:
        return [None] * len(whole)
    left, widths = room - sum(least), list(least)
    for index in sorted(range(len(whole)), key=lambda i: whole[i] - least[i]):
        more = min(whole[index] - least[index], left)
        widths[index] += more
        left -= more
    return widths


def _longest(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _mute() -> Console:
    return Console(quiet=True, force_terminal=False)


def folded(text: Text, width: int) -> Text:
    """Break a line between words, at wide gaps first; a word that has no room stays whole.

    What follows is indented by two columns more than the line.
    """
    plain = text.plain
    if text.cell_len <= width:
        return text
    indent = len(plain) - len(plain.lstrip()) + 2
    breaks, begin, room = list[int](), 0, width

    def place(found: re.Match[str]) -> None:
        nonlocal begin, room
        if cell_len(plain[begin : found.end()]) > room and plain[begin : found.start()].strip():
            breaks.append(found.start())
            begin, room = found.start(), width - indent

    for phrase in re.finditer(r"\S+(?: \S+)*", plain):
        if cell_len(phrase[0]) <= width - indent:
            place(phrase)
        else:
            for word in re.finditer(r"\S+", plain[: phrase.end()]):
                if word.start() >= phrase.start():
                    place(word)
    first, *others = text.divide(breaks)
    for line in (first, *others):
        line.rstrip()
    return Text("\n" + " " * indent).join([first, *others])
