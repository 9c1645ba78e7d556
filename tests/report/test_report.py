"""Lines, bars, run folders and pictures."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from funcrobust.core.errors import FuncrobustError
from funcrobust.report import Reporter, RunFolder, change_row, curves, image_grid, plots
from funcrobust.report.console import console, format_number
from funcrobust.report.plots import series_colour
from funcrobust.report.sinks import open_sink

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
    *_, last = out.getvalue().split("\x1b[2K")  # what stays on screen
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
    assert all(len(line.rstrip()) <= width - 3 for line in lines)
    assert all(" 50%" in line for line in lines[-1:] if width > 12)
    assert ("loss" in lines[-1]) == (width >= 50)
    assert ("img/s" in lines[-1]) == (width >= 100)


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


# --- run folders ------------------------------------------------------------------------------


def test_names_are_unique_within_a_second(tmp_path):
    runs = [RunFolder.create(tmp_path / "runs", "train cifar", {}) for _ in range(4)]
    names = {run.path.name for run in runs}
    assert len(names) == 4
    assert all(re.fullmatch(r"\d{8}-\d{6}-train-cifar(-\d)?", name) for name in names)


def test_config_comes_back(tmp_path):
    options = {"seed": 3, "eps": 8 / 255, "radius": math.inf, "out": Path("a"), "steps": (1, 2)}
    run = RunFolder.create(tmp_path, "train", options | {"device": torch.device("cpu")}, name="a")
    again = RunFolder.open(run.path)
    assert again.config == run.config
    assert again.config["eps"] == 8 / 255
    assert again.config["radius"] == math.inf
    assert again.config["steps"] == [1, 2]
    assert again.record["seed"] == 3
    assert again.record["command"] == "train"
    assert again.record["versions"]["torch"] == torch.__version__
    assert {"argv", "device", "created"} <= set(again.record)


def test_names_that_cannot_be(tmp_path):
    RunFolder.create(tmp_path, "train", {}, name="mine")
    with pytest.raises(FuncrobustError, match="exists already"):
        RunFolder.create(tmp_path, "train", {}, name="mine")
    for name in ("", "..", "a/b", "/tmp"):
        with pytest.raises(FuncrobustError, match="plain folder name"):
            RunFolder.create(tmp_path, "train", {}, name=name)
    run = RunFolder.open(tmp_path / "mine")
    assert run.file("console.log") == tmp_path / "mine" / "console.log"
    for name in ("", "../x", "/etc/passwd"):
        with pytest.raises(FuncrobustError, match="inside a run folder"):
            run.file(name)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(FuncrobustError, match="cannot write") as caught:
            RunFolder.create(root, "train", {})
        assert "\n" not in str(caught.value)
    with pytest.raises(FuncrobustError, match="as JSON"):
        RunFolder.create(tmp_path / "runs", "train", {"f": object()})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"options": 3}'])
def test_opening_what_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(FuncrobustError):
        RunFolder.open(tmp_path)


def test_metrics(tmp_path):
    run = RunFolder.create(tmp_path, "train", {})
    assert run.metrics() == []
    run.log({"epoch": 1, "loss": torch.tensor(0.5), "robust": np.float32(0.25), "note": "ψ"})
    run.log({"epoch": 2, "loss": math.nan, "robust": torch.tensor(math.inf)})
    assert run.metrics() == [
        {"epoch": 1, "loss": 0.5, "robust": 0.25, "note": "ψ"},
        {"epoch": 2, "loss": None, "robust": None},
    ]
    with pytest.raises(FuncrobustError, match="as JSON"):
        run.log({"bad": torch.zeros(3)})


@pytest.mark.parametrize("half", [b'{"epoch": 2, "lo', b'{"note": "\xcf', b"12"])
def test_a_half_written_line_is_left_out_and_mended(tmp_path, half):
    run = RunFolder.create(tmp_path, "train", {})
    run.log({"epoch": 1})
    with run.file("metrics.jsonl").open("ab") as stream:
        stream.write(half)
    assert run.metrics() == [{"epoch": 1}]
    run.log({"epoch": 3})
    assert run.metrics() == [{"epoch": 1}, {"epoch": 3}]


def test_a_line_that_lacks_only_its_end_is_kept_and_damage_in_the_middle_is_said(tmp_path):
    run = RunFolder.create(tmp_path, "train", {})
    run.file("metrics.jsonl").write_text('{"epoch": 1}')
    run.log({"epoch": 2})
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]
    run.file("metrics.jsonl").write_text('{"epoch": 1}\n{"ep\n{"epoch": 3}\n')
    with pytest.raises(FuncrobustError, match="line 2"):
        run.metrics()


def test_truncating_for_a_resumed_run(tmp_path):
    run = RunFolder.create(tmp_path, "train", {})
    for epoch in range(5):
        run.log({"epoch": epoch})
    run.truncate_metrics(lambda record: record["epoch"] < 2)
    assert run.metrics() == [{"epoch": 0}, {"epoch": 1}]
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "metrics.jsonl"]
    assert RunFolder.open(run.path).config == run.config


# --- pictures ---------------------------------------------------------------------------------


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(picture, colour):
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_the_colours_given_are_the_colours_drawn(tmp_path):
    corners = torch.zeros(1, 3, 2, 2)
    corners[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    corners[0, :, 0, 1] = torch.tensor([0.0, 1.0, 0.0])
    corners[0, :, 1, 0] = torch.tensor([0.0, 0.0, 1.0])
    corners[0, :, 1, 1] = torch.tensor([1.0005, 1.0, -0.0005])  # rounding is forgiven
    image_grid([("start", corners)], tmp_path / "a.png", column_labels=["cat"])
    picture = pixels(tmp_path / "a.png")
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]):
        assert count(picture, colour) == 48 * 48  # a square of exactly 48, nothing smoothed
    red = np.argwhere((picture == [255, 0, 0]).all(-1))
    blue = np.argwhere((picture == [0, 0, 255]).all(-1))
    assert blue[0][0] == red[0][0] + 48  # the second row of the image is below
    assert blue[0][1] == red[0][1]


def test_gray_and_rows_of_different_lengths(tmp_path):
    rows = [("a", torch.full((2, 1, 28, 28), 0.5)), ("b", torch.zeros(1, 3, 32, 32).bfloat16())]
    image_grid(rows, tmp_path / "a.png", title="T", caption="c " * 200)
    picture = pixels(tmp_path / "a.png")
    assert count(picture, [128, 128, 128]) >= 2 * 84 * 84
    assert count(picture, [0, 0, 0]) >= 96 * 96


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 4, 4), 1.1), "in \\[0, 1\\]"),
        (torch.full((1, 3, 4, 4), math.nan), "in \\[0, 1\\]"),
        (torch.zeros(3, 4, 4), "N, 1 or 3, H, W"),
        (torch.zeros(1, 2, 4, 4), "N, 1 or 3, H, W"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "floats"),
        (torch.zeros(0, 3, 4, 4), "at least one image"),
    ],
)
def test_images_that_cannot_be_drawn(tmp_path, images, message):
    with pytest.raises(FuncrobustError, match=message):
        image_grid([("x", images)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_column_labels_must_match_and_keep_their_newlines(tmp_path):
    with pytest.raises(FuncrobustError, match="2 column labels for 1"):
        image_grid([("x", torch.zeros(1, 3, 4, 4))], tmp_path / "a", column_labels=["a", "b"])
    one = torch.zeros(1, 3, 32, 32)  # the label fits into one line
    sizes = []
    for label in ("cat dog", "cat\ndog", "cat\n\ndog"):
        image_grid([("x", one)], tmp_path / "a.png", column_labels=[label])
        sizes.append(pixels(tmp_path / "a.png").shape)
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[0][1] == sizes[2][1]


def test_a_change_is_gray_where_nothing_changed_and_has_a_sign():
    a = torch.full((1, 1, 1, 3), 0.5)
    shown, factor = change_row(a, a + torch.tensor([0.0, 0.02, -0.02]))
    assert factor == 20  # 50 would leave [0, 1]
    assert torch.allclose(shown, torch.tensor([0.5, 0.9, 0.1]).expand_as(a))
    same, factor = change_row(a, a)
    assert (factor, same.unique().tolist()) == (1, [0.5])


def test_changes_share_a_factor():
    a = torch.zeros(1, 1, 1, 2)
    assert change_row(a, a + 0.25)[1] == 2
    shown, factor = change_row(a, a + 0.02, 2.0)
    assert factor == 2
    assert torch.allclose(shown, torch.full_like(a, 0.54))
    assert change_row(a, a + 1.0)[1] == 1  # nothing smaller than the change itself
    assert change_row(a, a + 1e-9)[1] == 1000
    with pytest.raises(FuncrobustError, match="equal shapes"):
        change_row(a, a[..., :1])
    with pytest.raises(FuncrobustError, match="equal shapes"):
        change_row(a[:0], a[:0])


@pytest.mark.parametrize(("outliers", "clipped", "factor"), [(0, 0, 20), (9, 9, 20), (30, 0, 1)])
def test_a_change_clips_one_value_in_a_hundred_at_most(outliers, clipped, factor):
    a = torch.full((1, 1, 10, 100), 0.5)
    change = torch.full_like(a, 0.02)
    change.view(-1)[:outliers] = 0.45
    shown, used = change_row(a, a + change)
    assert used == factor
    assert int((shown == 1).sum()) == clipped


def test_curves_draw_every_series_in_its_colour(tmp_path):
    metrics = [{"epoch": e, "clean_accuracy": 0.5 + e / 30, "loss": 2.0 - e / 10} for e in range(9)]
    metrics[4]["loss"] = None  # a diverged value, read back from JSON
    metrics[-1]["robust_accuracy"] = 0.4  # a single point
    panels = {"accuracy": ["clean_accuracy", "robust_accuracy"], "loss": ["loss", "absent"]}
    curves(metrics, tmp_path / "c.png", panels=panels | {"drift": ["drift"]}, title="ψ $x$ $")
    picture = pixels(tmp_path / "c.png")
    assert picture.shape[1] == 1320
    assert count(picture, rgb(series_colour("clean_accuracy"))) > 200
    # The point in the plot, besides the sample in the legend.
    robust = np.abs(picture - np.array(rgb(series_colour("robust_accuracy")))).max(-1) <= 2
    assert robust[:, 300:440].sum() >= 12
    assert count(picture, rgb(series_colour("curvature"))) == 0


def test_curves_of_nothing(tmp_path):
    curves([], tmp_path / "c.png", panels={"loss": ["loss"]})
    assert (tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(FuncrobustError, match="at least one panel"):
        curves([], tmp_path / "c.png", panels={})


def test_a_series_has_one_colour_everywhere():
    assert series_colour("robust_accuracy") != series_colour("clean_accuracy")
    assert series_colour("anything") == "#CC79A7"  # in every process


def test_importing_is_light():
    code = (
        "import sys, funcrobust.report; "
        "assert not {'matplotlib', 'torchvision'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_gets_every_number(tmp_path):
    """In a child: the newest events are written when the process ends."""
    pytest.importorskip("tensorboardX")
    program = (
        "import sys; from pathlib import Path; from funcrobust.report import RunFolder\n"
        "from funcrobust.report.sinks import open_sink\n"
        "run = RunFolder.create(Path(sys.argv[1]), 'cure-train', {}, 'run')\n"
        "open_sink('tensorboard', run, 'cure-train')({'epoch': 1, 'step': 10, 'loss': 0.5})\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    (events,) = (tmp_path / "run").glob("events.out.tfevents*")
    assert b"loss" in events.read_bytes()


def test_wandb_gets_every_record(tmp_path, monkeypatch):
    logged, sessions = [], []
    session = SimpleNamespace(log=lambda record, step: logged.append((record, step)))
    fake = SimpleNamespace(init=lambda **options: sessions.append(options) or session)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = RunFolder.create(tmp_path, "psi-train", {"seed": 1})
    open_sink("wandb", run, "psi-train")({"epoch": 1, "step": 10, "drift": 0.5})
    assert sessions[0]["config"] == {"seed": 1}
    assert logged == [({"epoch": 1, "step": 10, "drift": 0.5}, 10)]


def test_sinks_that_are_not_there(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path, "psi-train", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(FuncrobustError, match=r"pip install funcrobust\[wandb\]"):
        open_sink("wandb", run, "psi-train")
    with pytest.raises(FuncrobustError, match="unknown --log"):
        open_sink("paper", run, "psi-train")


def test_lines_share_one_legend(tmp_path):
    series = {f"s{i}": [(0, float(i)), (1, 2.0 * i), (5, 3.0)] for i in range(9)}
    path = tmp_path / "lines.png"
    plots.lines({"a": series, "b": series, "c": series}, path, x="steps", title="t")
    with Image.open(path) as image:
        assert image.size[0] > 900
    with pytest.raises(FuncrobustError, match="panel"):
        plots.lines({}, path, x="steps")
