"""Lines, tables and bars, on a terminal and off it."""

from __future__ import annotations

import io
import itertools
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from funcrobust.core.errors import FuncrobustError
from funcrobust.report import Reporter
from funcrobust.report.bars import format_number
from funcrobust.report.console import console, folded

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain_reporter(clock=time.monotonic, log=None):
    out = io.StringIO()
    return Reporter(log, console=Console(file=out, force_terminal=False, get_time=clock)), out


def terminal_reporter(clock=time.monotonic, log=None, width=100):
    out, env = io.StringIO(), {"TERM": "xterm"}
    made = Console(file=out, width=width, force_terminal=True, get_time=clock, _environ=env)
    return Reporter(log, console=made), out


# --- the reporter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.8312, "1.83"), (0.02, "0.0200"), (123.4, "123"), (12345.6, "12,346"),
        (1e-7, "1.00e-07"), (3, "3"), (0.0, "0"), (math.nan, "nan"), ("abc", "abc"),
        (torch.tensor(0.5, requires_grad=True), "0.500"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text


def test_console_off_a_terminal_is_plain(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console().print("[bold red]ψ[/]")
    assert not console().is_terminal
    assert capsys.readouterr().out == "ψ\n"


def test_lines_are_not_markup_and_are_not_broken(tmp_path):
    report, out = plain_reporter(log=tmp_path / "log")
    text = "[red]x[/red] " + "/long" * 60
    report.say(text)
    report.warn("careful [1]")
    expected = f"{text}\nwarning: careful [1]\n"
    assert out.getvalue() == (tmp_path / "log").read_text() == expected


def test_the_log_begins_with_what_was_said_before_and_can_move(tmp_path):
    report, _ = plain_reporter()
    report.say("before")
    report.attach(tmp_path / "a")
    report.say("after ψ")
    report.attach(tmp_path / "b")
    report.say("last")
    report.close()
    report.close()
    assert (tmp_path / "a").read_text(encoding="utf-8") == "before\nafter ψ\n"
    assert (tmp_path / "b").read_text() == "last\n"
    with pytest.raises(FuncrobustError, match="cannot write the log"):
        report.attach(tmp_path / "no" / "log")


def test_table_in_both_places(tmp_path):
    report, out = plain_reporter(log=tmp_path / "log")
    title = "a title that is longer [b] than the narrow table below it"
    report.table(title, ["attack [a]", "accuracy"], [["PGD", "3.1%"], ["FGSM", "55.1%"]])
    assert out.getvalue() == (tmp_path / "log").read_text()
    lines = out.getvalue().splitlines()
    assert lines[0] == title
    assert "attack [a]" in lines[1]
    assert len({line.rfind("%") for line in lines if "%" in line}) == 1  # set to the right
    with pytest.raises(FuncrobustError, match="2 columns"):
        report.table("t", ["a", "b"], [["1"]])
    report, out = terminal_reporter()
    report.table(title, ["a", "b"], [["1", "2"]])
    assert title in out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_cells_of_a_table_are_broken_between_words(width):
    columns = ("run", "command", "clean", "state", "date")
    row = ("20261126-033621-cure-train", "cure-train", "80.1%", "20.0% upper bound", "11-26 03:36")
    report, out = terminal_reporter(width=width)
    report.table("runs", columns, [row] * 2)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    shown = " ".join(lines).split()
    for word in " ".join(row).split():
        assert shown.count(word) == 2, word


def test_silent_prints_nothing_but_logs(tmp_path, capsys):
    with Reporter.silent(tmp_path / "log") as report, report.track("work", 2) as bar:
        bar.advance(2)
        report.say("hello")
        report.table("t", ["a"], [["1"]])
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "log").read_text().startswith("hello\nt\n")


def test_plain_lines_come_every_ten_seconds_and_at_the_end(tmp_path):
    clock = Clock()
    report, out = plain_reporter(clock, tmp_path / "log")
    with report.track("train [1]", 400, unit="img") as bar:
        for _ in range(40):
            clock.now += 0.625  # exact in binary: 25 s in all
            bar.advance(10, loss=1.8312, curvature=torch.tensor(0.02))
    fields = "loss 1.83  curvature 0.0200"
    assert out.getvalue().splitlines() == [
        f"train [1] · 40% · 160/400 · 16.0 img/s · 0:00:10 · 00:15 left · {fields}",
        f"train [1] · 80% · 320/400 · 16.0 img/s · 0:00:20 · 00:05 left · {fields}",
        f"train [1] · 100% · 400/400 · 16.0 img/s · 0:00:25 · {fields}",
    ]
    assert (tmp_path / "log").read_text() == out.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(1.9, 0), (2.1, 1)])
def test_brief_work_gets_no_plain_line(tmp_path, seconds, lines):
    clock = Clock()
    report, out = plain_reporter(clock, tmp_path / "log")
    with report.track("PGD", 2) as bar:
        clock.now += seconds
        bar.advance(2)
    assert len(out.getvalue().splitlines()) == lines
    assert (tmp_path / "log").read_text() == out.getvalue()


def test_rate_forgets_a_slow_first_step_and_what_was_done_before():
    clock = Clock()
    report, out = plain_reporter(clock)
    with report.track("train", 2000, initial=500) as bar:
        clock.now += 120  # compiling
        bar.advance()
        for _ in range(1000):
            clock.now += 0.1
            bar.advance()
        assert " · 10.0 it/s · 0:03:" in out.getvalue().splitlines()[-1]
        bar.advance(499)
    assert "2000/2000 · 6.82 it/s · 0:03:4" in out.getvalue().splitlines()[-1]


def test_updates_slower_than_a_minute_have_a_rate():
    clock = Clock()
    report, out = plain_reporter(clock)
    with report.track("train", 512) as bar:
        for _ in range(3):
            clock.now += 150
            bar.advance(128)
        assert "384/512 · 0.853 it/s · 0:07:30" in out.getvalue()
        bar.advance(128)


@pytest.mark.parametrize("make", [plain_reporter, terminal_reporter])
def test_values_are_read_five_times_a_second_at_most(make):
    clock = Clock()
    report, _ = make(clock)
    reads = 0

    class Value:
        def __float__(self):
            nonlocal reads
            reads += 1
            return 1.0

    with report.track("train", 1000) as bar:
        for _ in range(1000):
            clock.now += 0.001
            bar.advance(loss=Value())
    assert 2 <= reads <= 7  # and the last


@pytest.mark.parametrize("make", [plain_reporter, terminal_reporter])
def test_advancing_is_cheap(make):
    report, _ = make()
    with report.track("train", 100_000) as bar:
        begin = time.process_time()
        for _ in range(20_000):
            bar.advance(1, loss=1.8, curvature=0.02)
        assert (time.process_time() - begin) / 20_000 < 50e-6


def test_an_error_passes_through_and_says_where():
    report, out = plain_reporter()

    def work():
        with report.track("train", 4) as bar:
            bar.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue().startswith("stopped: train · 25% · 1/4")


@pytest.mark.parametrize("make", [plain_reporter, terminal_reporter])
def test_a_total_of_zero_and_an_unknown_total(make, tmp_path):
    clock = Clock()
    report, _ = make(clock, tmp_path / "log")
    for total, done in ((0, 0), (None, 3)):
        with report.track("walk", total) as bar:
            clock.now += 3
            bar.advance(done)
    assert re.findall(r"\d+/[\d?]", (tmp_path / "log").read_text()) == ["0/0", "3/?"]


def test_nested_bars_share_the_screen_and_restore_it(tmp_path):
    clock = Clock()
    report, out = terminal_reporter(clock, tmp_path / "log")

    def work():
        with report.track("epochs", 3) as outer:
            with report.track("batches", 2) as inner:
                clock.now += 3
                inner.advance(2, loss=1.0)
            outer.advance()
            report.say("a line between")
            with report.track("evaluation", None):
                raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    *_, last = out.getvalue().split("\x1b[2K")  # what stays on screen: it was not done
    assert "epochs" in last
    assert "batches" in out.getvalue()
    assert "batches" not in last
    assert out.getvalue().count(HIDE_CURSOR) == 1  # one picture for both
    assert out.getvalue().rindex(SHOW_CURSOR) > out.getvalue().rindex(HIDE_CURSOR)
    log = (tmp_path / "log").read_text()
    assert "\x1b" not in log
    begins = ["batches", "a line between", "stopped: evaluation", "stopped: epochs"]
    assert [line.split(" ·")[0] for line in log.splitlines()] == begins


@pytest.mark.parametrize("width", [12, 24, 40, 60, 80, 120])
def test_bars_leave_room_at_the_right(width):
    report, out = terminal_reporter(width=width)
    with report.track("epoch 3 of 30", 50_000, unit="img") as bar:
        bar.advance(25_000, loss=1.83, curvature=0.0213, robust_accuracy=0.5, learning_rate=0.1)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    lines = [line for line in lines if line.strip()]
    assert all(len(line.rstrip()) <= width - 3 for line in lines)
    assert "…" not in lines[-1] or width < 40, "a field is shown as a whole, or not at all"
    assert all(" 50%" in line for line in lines[-1:] if width > 12)
    assert ("loss" in lines[-1]) == (width >= 50)
    assert ("img/s" in lines[-1]) == (width >= 100)


def test_a_bar_that_is_done_is_gone():
    report, out = terminal_reporter(width=80)
    with report.track("epoch", 4) as bar:
        bar.advance(4, loss=1.83)
    report.say("after")
    *_, last = out.getvalue().split("\x1b[2K")
    assert "━" in out.getvalue()
    assert "━" not in last
    assert "after" in last


@given(
    st.lists(st.text("aé漢", min_size=1, max_size=12), max_size=30),
    st.lists(st.sampled_from([" ", "  "]), min_size=30, max_size=30),
    st.integers(8, 60),
)
def test_a_line_is_broken_between_words_alone(words, gaps, width):
    text = "".join(w + g for w, g in zip(words, gaps, strict=False)).rstrip()
    lines = folded(Text(text), width).plain.split("\n")
    assert " ".join(lines).split() == words
    for line, following in itertools.pairwise(lines):
        assert cell_len(line) <= width or len(line.split()) == 1
        assert line == line.rstrip()
        assert cell_len(line) + 1 + cell_len(following.split()[0]) > width or "  " in text
    if cell_len(text) <= width:
        assert lines == [text]


def test_a_line_is_broken_at_wide_gaps_first():
    text = "epoch 1/6  loss 2.141  lr 0.02083  clean 80.5%"
    assert folded(Text(text), 32).plain == "epoch 1/6  loss 2.141\n  lr 0.02083  clean 80.5%"


def test_download_bars():
    clock = Clock()
    report, out = plain_reporter(clock)
    callback = report.progress_callback()
    for name, done, total in [
        ("CIFAR-10", 0, 170_500_000), ("CIFAR-10", 40_000_000, 170_500_000),
        ("CIFAR-10", 170_500_000, 170_500_000), ("CIFAR-10", 170_500_000, 170_500_000),
        ("unknown", 10, None), ("unknown", 20, None), ("next", 0, 100), ("next", 100, 100),
    ]:  # fmt: skip
        clock.now += 2
        callback(name, done, total)
    lines = out.getvalue().splitlines()
    assert [line.split(" ·")[0] for line in lines] == ["CIFAR-10", "unknown", "next"]
    assert "CIFAR-10 · 100% · 170.5/170.5 MB · 42.6 MB/s" in lines[0]
    report, out = terminal_reporter()  # one left open is closed with its reporter
    report.progress_callback()("CIFAR-10", 1, 10)
    report.close()
    assert out.getvalue().rindex(SHOW_CURSOR) > out.getvalue().rindex(HIDE_CURSOR)


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    code = (
        "import pathlib, sys; from funcrobust.report.console import Reporter\n"
        "report = Reporter(pathlib.Path(sys.argv[1]))\n"
        "sys.stdin.read()\n"  # until the reader has left
        "with report.track('work', 2) : report.say('one'); report.say('two')\n"
        "print('foreign')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        run.stdout.close()
        _, errors = run.communicate("", timeout=60)
    assert (run.returncode, errors) == (0, "")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_not_the_run():
    report, out = plain_reporter(log=Path("/dev/full"))
    report.say("one")
    report.say("two")
    assert "the log file is no longer written: No space left" in out.getvalue()
    assert out.getvalue().endswith("one\ntwo\n")


def test_importing_is_light():
    code = (
        "import sys, funcrobust.report; "
        "assert not {'matplotlib', 'torchvision'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


HOSTILE = "a\x1b[2J\nforged \u202etxt.exe\r\x9b31m"


def test_no_text_of_a_file_is_obeyed_by_the_terminal(tmp_path):
    """Whatever is said, on the terminal and in the log: what is not to be seen is spelled out."""
    screen = io.StringIO()
    with Reporter(tmp_path / "log", console=Console(file=screen, force_terminal=True)) as report:
        report.say(HOSTILE)
        report.warn(HOSTILE)
        report.table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, "c")])
        with report.track(HOSTILE, 2) as bar:
            bar.advance(2, now=HOSTILE)
        report.progress_callback()(HOSTILE, 1, 2)
    log = (tmp_path / "log").read_text(encoding="utf-8")
    for text in (screen.getvalue(), log):
        assert "\x1b[2J" not in text
        assert not {"\u202e", "\x9b"} & set(text)
        assert "\nforged" not in text
    assert log.startswith("a\\x1b[2J\\nforged \\u202etxt.exe\\r\\x9b31m\n")
