"""Signals that ask a run to stop: Ctrl-C, SIGTERM (a scheduler), SIGHUP (a closed terminal)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class StopNow(KeyboardInterrupt):
    """The second signal: what is saved is saved."""


class Stops:
    """Whether a signal has come. The first sets ``asked``, and is acknowledged; a second raises.

    Within `at_once` the first raises as well, a KeyboardInterrupt. The second raises `StopNow`.
    Signals that the process was started to ignore (nohup) stay ignored; outside of the main thread,
    where no handler can be set, all are left alone.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            with suppress(ValueError):  # not in the main thread
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise here: there is nothing to be finished before."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _come(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise StopNow
        self.asked = True
        first = "" if self._at_once else "finishing the update, "
        _acknowledge(f"{first}saving; again to stop now")
        if self._at_once:
            raise KeyboardInterrupt


def _acknowledge(text: str) -> None:
    """Write a line on stderr, past all buffers: the signal may have come amid another write.

    On a terminal it takes the place of a bar, and of the ^C that was echoed over it: the bar is
    drawn again below.
    """
    with suppress(OSError, ValueError, AttributeError):
        obeys = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        os.write(sys.stderr.fileno(), ("\r\x1b[2K" * obeys + text + "\n").encode())
