"""A training on a real terminal of 80 columns: a pty, and an emulator that says what is seen."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time

import pytest
from problems import ROOT, run_cli

pytest.importorskip("termios", reason="no terminals there")
pyte = pytest.importorskip("pyte")

import fcntl  # noqa: E402
import termios  # noqa: E402

TINY = (
    "--dataset", "digits", "--train-examples", "64", "--test-examples", "32", "--batch-size", "16",
    "--evaluate-examples", "16", "--evaluate-steps", "2", "--robust-examples", "16",
)  # fmt: skip
PATIENCE = 240  # seconds


class Terminal:
    """A command on a terminal of 80 x 24."""

    def __init__(self, *words, **environment):
        self.raw, (self.ours, theirs) = b"", os.openpty()
        self.screen = pyte.HistoryScreen(80, 24, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "funcrobust", *words], stdin=theirs, stdout=theirs,
            stderr=theirs, cwd=ROOT, start_new_session=True, preexec_fn=_controlled,
            env=env | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
        os.close(theirs)

    def until(self, seen):
        """Read until ``seen(lines)``, or the end; return the lines."""
        last = time.monotonic() + PATIENCE
        while not seen(self.lines) and time.monotonic() < last:
            if not select.select([self.ours], [], [], 1)[0]:
                continue
            try:
                read = os.read(self.ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not read:
                break
            self.raw += read
            self._stream.feed(read)
        return self.lines

    @property
    def lines(self):
        """All lines, those above the screen too."""
        above = ["".join(row[i].data for i in range(80)) for row in self.screen.history.top]
        return [line.rstrip() for line in (*above, *self.screen.display) if line.strip()]

    def end(self):
        self.until(lambda _: False)
        os.close(self.ours)
        return self.process.wait(PATIENCE)


def _controlled():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed there is a signal


def words(lines):
    return " ".join(" ".join(lines).split())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training that Ctrl-C stops in its fourth epoch, by NO_COLOR."""
    folder = tmp_path_factory.mktemp("terminal")
    terminal = Terminal(
        "cure-train", *TINY, "--epochs", "2000", "--out", str(folder), "--name", "run", NO_COLOR="1"
    )
    # The whole record: at Ctrl-C a terminal forgets what of a line it has not shown yet.
    record = re.compile(r"epoch 3/2000 loss .* train_attacked [\d.]+%")
    terminal.until(lambda lines: record.search(words(lines)))
    os.write(terminal.ours, b"\x03")
    acknowledged = terminal.until(lambda lines: any("again to stop now" in line for line in lines))
    return folder / "run", acknowledged, terminal, terminal.end()


def test_ctrl_c_is_acknowledged_before_anything_else_is_said(stopped):
    _, acknowledged, terminal, code = stopped
    assert code == 130
    (place,) = [i for i, line in enumerate(acknowledged) if "again to stop now" in line]
    assert re.fullmatch(
        r"(finishing the update, )?saving; again to stop now", acknowledged[place]
    ), "a line of its own, and no ^C left over"
    assert not any("Continue with" in line for line in acknowledged)
    assert any("Continue with" in line for line in terminal.lines)


def test_no_word_is_broken_and_no_bar_is_left(stopped):
    run, _, terminal, _ = stopped
    seen, log = words(terminal.lines), (run / "console.log").read_text(encoding="utf-8")
    said = [line for line in log.splitlines() if " · " not in line]
    assert len([line for line in said if line.startswith("epoch")]) >= 3
    whole = "".join(terminal.lines).replace(" ", "")
    for line in said:
        command = "cli.py" in line  # for copying: the terminal's own edge alone breaks it
        assert (line.replace(" ", "") in whole) if command else (words([line]) in seen), line
    bars = [line for line in terminal.lines if re.search("[━╸╺]", line)]
    assert bars == [], "what is done says so in words, or not at all"


def test_the_command_to_go_on_with_can_be_copied(stopped):
    run, _, terminal, _ = stopped
    shown = "".join(line for line in terminal.lines[-3:])
    assert f"cure-train --resume {run}" in shown, "the terminal's own wrap adds no space"


def test_no_color_is_heeded(stopped):
    assert not re.search(rb"\x1b\[[\d;]*(3[0-7]|9[0-7]|38;|48;)[\d;]*m", stopped[2].raw)


def test_quiet_says_nothing_and_the_log_all(tmp_path, capfd):
    done = run_cli(
        "cure-train", *TINY, "--epochs", "1", "--quiet", "--out", str(tmp_path), "--name", "run"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = (tmp_path / "run" / "console.log").read_text(encoding="utf-8")
    assert "epoch 1/1" in log
    ending = log.splitlines()[-4:]
    assert ending[0].startswith(f"in {tmp_path / 'run'}: report.html, checkpoint.safetensors")
    assert [line.split()[2:4] for line in ending[1:]] == [
        ["evaluate", str(tmp_path / "run")], ["psi-train", "--checkpoint"], ["runs", "--out"],
    ]  # fmt: skip
    assert '"quiet"' not in (tmp_path / "run" / "config.json").read_text()


def test_quiet_still_warns(tmp_path, capfd):
    from funcrobust.report import Reporter

    with Reporter(tmp_path / "log", quiet=True) as reporter:
        reporter.say("a line")
        reporter.warn("a fault. Continue with", command="funcrobust " + "x" * 90)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"warning: a fault. Continue with\nfuncrobust {'x' * 90}\n"
    assert (tmp_path / "log").read_text() == f"a line\n{err}"
