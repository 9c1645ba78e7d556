"""Nothing of a run is lost: kills at every write and update, damaged files, deleted folders.

A toy run (one weight matrix, a momentum, metrics that come at every update and at every third) is
driven by the loop that the trainings use. The trainings themselves: tests/commands/test_kills.py.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from funcrobust.checkpoints import load_state
from funcrobust.checkpoints.state import write_state
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import generator
from funcrobust.core.training.updates import State
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running import holding
from funcrobust.running import state as states
from funcrobust.running.loop import Plan, drive
from funcrobust.running.state import Position, Writer, load_position

START = State({"w": torch.ones(3, 4).t()}, {}, {"m": torch.zeros(4, 3)}, torch.tensor(0))
FIGURES = [(0.60, 0.35, 0.33), (0.62, 0.37, 0.35), (0.70, 0.36, 0.02), (0.71, 0.36, 0.01)]


def update(state, batch):
    gradient = state.params["w"] - batch
    momentum = 0.9 * state.optimizer_state["m"] + gradient
    after = State({"w": state.params["w"] - 0.1 * momentum}, {}, {"m": momentum}, state.step + 1)
    seen = {"loss": gradient.square().mean()}
    return after, seen | ({"third": momentum.norm()} if int(state.step) % 3 == 0 else {})


def make_plan(**changes):
    """20 updates in 4 epochs of 5."""
    plan = {
        "update": update,
        "batch": lambda step: (torch.randn(4, 3, generator=generator(0, "batch", step))),
        "steps": 20, "steps_per_epoch": 5, "batch_size": 1, "save_every": 1e-9,
        "examine": lambda _, state: {"norm": float(state.params["w"].norm())},
    } | changes  # fmt: skip
    return Plan(**plan)


def go(folder, plan=None, sink=lambda _: None):
    """Begin or resume the run in a folder, and drive it to its end."""
    with Reporter.silent() as reporter:
        if (folder / "config.json").exists():
            run = RunFolder.open(folder)
            with run.locked():
                plan = plan or make_plan()
                at = load_position(run, START, reporter, plan.steps) or Position(START)
                run.truncate_metrics(lambda record: record["step"] <= at.step)
                return drive(plan, at, run, reporter, sink)
        run = RunFolder.create(folder.parent, "cure-train", {}, folder.name)
        with run.locked():
            return drive(plan or make_plan(), Position(START), run, reporter, sink)


def same(a, b):
    return torch.equal(a.params["w"], b.params["w"]) and torch.equal(
        a.optimizer_state["m"], b.optimizer_state["m"]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return go(folder), (folder / "metrics.jsonl").read_bytes()


def equals(outcome, folder, whole):
    expected, records = whole
    assert outcome.status == expected.status
    assert same(outcome.state, expected.state)
    assert (folder / "metrics.jsonl").read_bytes() == records


# --- kills --------------------------------------------------------------------------------------

CALLS = ("fsync", "replace", "link", "rename")


def killed_at(number, folder, plan):
    """Run in a child that kills itself before its ``number``-th call; return whether it did.

    The calls are those that make a write last, the updates and the examinations: between any two of
    them nothing changes on disk but a temporary file or the end of metrics.jsonl.
    """
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            count, lock = 0, threading.Lock()

            def counted(call):
                def counting(*args, **kwargs):
                    nonlocal count
                    with lock:
                        count += 1
                        if count == number:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return counting

            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            RunFolder.log = counted(RunFolder.log)
            killing = {"update": counted(plan.update), "examine": counted(plan.examine)}
            go(folder, replace(plan, **killing))
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def test_a_kill_at_every_point_loses_nothing(tmp_path):
    """Exhaustive over every call of a run, and the run is resumed once more after a second kill."""
    number = kills = 0
    plan = make_plan(steps=6, steps_per_epoch=3)
    expected = go(tmp_path / "run", plan), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    while True:
        number += 1
        folder = tmp_path / str(number) / "run"
        if not killed_at(number, folder, plan):
            break
        kills += 1
        if number % 3 == 0:
            kills += killed_at(1 + number % 7, folder, plan)
        equals(go(folder, plan), folder, expected)
        assert not list(folder.parent.glob("**/*.tmp")), "the dead's leftovers are cleared"
    # 6 updates, 2 examinations, 2 records, at least 2 saves of 5 calls and 2 second names of 2.
    assert kills > 20


def test_a_run_goes_on_from_its_last_save_not_from_its_last_epoch(tmp_path):
    stopped_at_update(tmp_path / "run", 14)
    with Reporter.silent() as reporter:
        at = load_position(RunFolder.open(tmp_path / "run"), START, reporter)
    assert (at.step, at.counts) == (13, {"loss": 3, "third": 1})


def stopped_at_update(folder, step, **changes):
    """Go as far as that update; every save is waited for, so that there is one at every update."""

    def stopping(state, batch):
        if int(state.step) == step:
            raise RuntimeError
        return update(state, batch)

    save = Writer.save
    with (
        mock.patch.object(Writer, "save", lambda self, at: (save(self, at), self.wait())),
        suppress(RuntimeError),
    ):
        go(folder, make_plan(**changes, update=stopping))


def test_seconds_between_saves(tmp_path, monkeypatch):
    """By a clock that ticks a second an update: every third update, and at the epochs' ends."""
    now = [0.0]
    monkeypatch.setattr(states.time, "monotonic", lambda: now[0])
    saved = []
    save = Writer.save
    monkeypatch.setattr(
        Writer, "save",
        lambda self, at: (saved.append(at.step), save(self, at), self.wait()),
    )  # fmt: skip

    def ticking(state, batch):
        now[0] += 1
        return update(state, batch)

    go(tmp_path / "run", make_plan(update=ticking, save_every=3.0))
    assert saved == [2, 5, 7, 10, 12, 15, 17, 20]


def test_an_epoch_recorded_after_a_resumption_is_recorded_to_the_bit(tmp_path, whole):
    stopped_at_update(tmp_path / "run", 13)
    equals(go(tmp_path / "run"), tmp_path / "run", whole)


def test_an_examination_interrupted_is_made_again(tmp_path, whole):
    def stopping(epoch, state):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return make_plan().examine(epoch, state)

    outcome = go(tmp_path / "run", make_plan(examine=stopping))
    assert (outcome.status, outcome.position.step) == ("interrupted", 10)
    equals(go(tmp_path / "run"), tmp_path / "run", whole)


@pytest.mark.parametrize("at", [6, 8, 10])
def test_a_collapse_keeps_the_same_state_after_a_resumption(tmp_path, at):
    """Resumed before the epoch that collapses, within it, and after it."""

    def examine(epoch, _):
        names = ("train_clean", "train_robust", "train_worst")
        return dict(zip(names, FIGURES[epoch], strict=True))

    plan = {"examine": examine, "watched": 256, "steps_per_epoch": 4, "steps": 16}
    expected = go(tmp_path / "whole", make_plan(**plan))
    assert (expected.status, expected.position.step) == ("collapsed", 8)

    folder = tmp_path / "run"
    stopped_at_update(folder, at, **plan)
    for _ in range(2):  # the second time all is done but what follows the training
        outcome = go(folder, make_plan(**plan))
        assert outcome.status == "collapsed"
        assert same(outcome.state, expected.state)


@pytest.mark.parametrize("at", [6, 9, 10, 11, 12])
def test_a_collapse_keeps_the_last_state_that_was_watched(tmp_path, at):
    """Every second epoch, of two updates, is watched; the third one watched, at 12, collapses."""

    def examine(epoch, _):
        names = ("train_clean", "train_robust", "train_worst")
        return dict(zip(names, FIGURES[epoch // 2], strict=True)) if epoch % 2 else {}

    plan = {"examine": examine, "watched": 256, "steps_per_epoch": 2, "steps": 16}
    expected = go(tmp_path / "whole", make_plan(**plan))
    assert (expected.status, expected.position.step) == ("collapsed", 8)
    assert int(expected.state.step) == 8

    folder = tmp_path / "run"
    stopped_at_update(folder, at, **plan)
    outcome = go(folder, make_plan(**plan))
    assert outcome.status == "collapsed"
    assert same(outcome.state, expected.state)


def test_a_divergence_keeps_the_same_state_after_a_resumption(tmp_path):
    def diverging(state, batch):
        after, metrics = update(state, batch)
        return after, metrics | ({"loss": torch.tensor(torch.nan)} if after.step == 14 else {})

    expected = go(tmp_path / "whole", make_plan(update=diverging))
    assert (expected.status, expected.position.step) == ("diverged", 10)
    stopped_at_update(tmp_path / "run", 12)
    outcome = go(tmp_path / "run", make_plan(update=diverging))
    assert (outcome.status, same(outcome.state, expected.state)) == ("diverged", True)


def test_a_run_that_had_reached_its_aim_is_not_trained_further(tmp_path):
    plan = {"enough": lambda record: record["epoch"] == 2}
    assert go(tmp_path / "run", make_plan(**plan)).position.step == 10
    untouched = make_plan(**plan, update=lambda *_: pytest.fail("trained on"))
    outcome = go(tmp_path / "run", untouched)
    assert (outcome.status, outcome.position.step) == ("finished", 10)


# --- damage -------------------------------------------------------------------------------------


def truncated(raw):
    return raw[: len(raw) // 2]


def flipped_in_a_tensor(raw):
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


def flipped_in_the_sums(raw):
    """Another number of updates behind a sum."""
    begin = raw.index(b"counts")
    place = begin + re.search(rb"loss\W+(\d)", raw[begin:]).start(1)
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped_in_a_tensor, flipped_in_the_sums])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, whole, damage):
    folder = tmp_path / "run"
    stopped_at_update(folder, 13)
    newest = folder / "state.safetensors"
    raw = newest.read_bytes()
    assert damage(raw) != raw
    newest.write_bytes(damage(raw))
    with pytest.raises(FuncrobustError):
        load_state(newest)
    said = []
    with Reporter.silent() as reporter:
        reporter.warn = said.append
        at = load_position(RunFolder.open(folder), START, reporter)
    assert at.step == 11
    (line,) = said
    assert "going on from the state before, at step 11" in line
    assert load_state(newest)[1]["step"] == 11, "the next save keeps a whole one as the one before"
    equals(go(folder), folder, whole)


def without(name):
    return lambda tensors, meta: (tensors, {n: value for n, value in meta.items() if n != name})


def saying(**changes):
    return lambda tensors, meta: (tensors, meta | changes)


def holding_instead(name, tensor):
    return lambda tensors, meta: (tensors | {name: tensor}, meta)


def at_step(step):
    return lambda tensors, meta: (tensors | {"step": torch.tensor(step)}, meta | {"step": step})


def stepless(tensors, meta):
    return {name: tensor for name, tensor in tensors.items() if name != "step"}, meta


def with_a_matrix_of_losses(tensors, meta):
    strides = meta["strides"] | {"sums/loss": [3, 1]}
    return tensors | {"sums/loss": torch.zeros(3, 3)}, meta | {"strides": strides}


LIES = {
    "a count of no metric": (saying(counts={"nosuch": 1}), "no sum of 'nosuch'"),
    "counts without names": (saying(counts=[1, 2]), "expected names with values"),
    "a count of nothing": (saying(counts={"loss": 0}), "no sum of 'loss' over one update"),
    "a count that is none": (saying(counts={"loss": 1.5}), "expected int"),
    "no counts": (without("counts"), "it lacks 'counts'"),
    "no strides": (without("strides"), "it lacks 'strides'"),
    "no step": (without("step"), "it lacks 'step'"),
    "no tensor of the step": (stepless, "not those of step 12"),
    "two steps": (holding_instead("step", torch.tensor(3)), "not those of step 12"),
    "a step beyond the end": (at_step(10**15), "of a run of 20 updates"),
    "no seconds": (saying(seconds=None), "expected float"),
    "seconds in words": (saying(seconds="x"), "expected float"),
    "seconds before the beginning": (saying(seconds=-5), "no training takes -5 seconds"),
    "seconds beyond reason": (saying(seconds=1e300), r"no training takes 1e\+300 seconds"),
    "a sum that is a matrix": (with_a_matrix_of_losses, "no sum of 'loss'"),
    "a sum of whole numbers": (holding_instead("sums/loss", torch.tensor(3)), "no sum of 'loss'"),
}  # fmt: skip
"""Each with a SHA-256 that is right: anybody can take it."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stopped_at_update(folder, 13)
    return folder


@pytest.mark.parametrize("case", LIES)
def test_a_state_that_contradicts_itself_gives_way_to_the_one_before(
    tmp_path, whole, stopped, case
):
    lie, words = LIES[case]
    folder = shutil.copytree(stopped, tmp_path / "run")
    newest = folder / "state.safetensors"
    tensors, meta = lie(*load_state(newest))
    newest.unlink()
    write_state(newest, tensors, meta)
    only = shutil.copytree(folder, tmp_path / "only")
    (only / "state-before.safetensors").unlink()
    with pytest.raises(FuncrobustError, match=f"is damaged: .*{words}.*; and no whole") as caught:
        go(only)
    assert "\n" not in str(caught.value)
    equals(go(folder), folder, whole)


def test_two_damaged_states_are_refused_not_forgotten(tmp_path):
    folder = tmp_path / "run"
    stopped_at_update(folder, 13)
    for name in ("state.safetensors", "state-before.safetensors"):
        (folder / name).write_bytes(b"")
    with pytest.raises(FuncrobustError, match="delete both to begin again at step 0"):
        go(folder)


# --- folders ------------------------------------------------------------------------------------


def rescue_of(error):
    """The folder that an error names."""
    assert "\n" not in str(error.value)
    return Path(str(error.value).split(" is in ")[1].split(": ")[0])


@pytest.mark.parametrize("step", [7, 9, 10])
def test_a_folder_deleted_during_training_is_rescued(tmp_path, whole, monkeypatch, step):
    monkeypatch.setattr(holding.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "run"

    def deleting(state, batch):
        if int(state.step) == step:
            shutil.rmtree(folder)
        return update(state, batch)

    with pytest.raises(FuncrobustError, match="deleted or moved") as error:
        go(folder, make_plan(update=deleting, save_every=1e9))
    assert not folder.exists()
    rescued = rescue_of(error)
    assert f"--resume {rescued}" in str(error.value)
    assert load_state(rescued / "state.safetensors")[1]["step"] >= step
    equals(go(rescued), rescued, whole)


def test_a_run_that_is_called_the_current_folder_is_rescued(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(holding.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "run"
    stopped_at_update(folder, 5)
    monkeypatch.chdir(folder)

    def deleting(state, batch):
        if int(state.step) == 8:
            shutil.rmtree(folder)
        return update(state, batch)

    with pytest.raises(FuncrobustError, match="deleted or moved") as error:
        go(Path(), make_plan(update=deleting, save_every=1e9))
    monkeypatch.chdir(tmp_path)
    equals(go(rescue_of(error)), rescue_of(error), whole)


def test_a_disk_that_fills_up_during_training(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(holding.tempfile, "tempdir", str(tmp_path))
    folder, full, fsync = tmp_path / "run", [], os.fsync

    def filling(descriptor):
        if full and str(folder) in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)

    def update_until_full(state, batch):
        full.extend([1] * (int(state.step) == 8))
        return update(state, batch)

    with pytest.raises(FuncrobustError, match=r"cannot write .*No space left") as error:
        go(folder, make_plan(update=update_until_full))
    assert not list(folder.glob("*.tmp"))
    equals(go(rescue_of(error)), rescue_of(error), whole)
    full.clear()  # there is space again: the run goes on where it was, too
    equals(go(folder), folder, whole)


def test_nowhere_to_be_rescued_to(tmp_path, monkeypatch):
    monkeypatch.setattr(holding.tempfile, "tempdir", str(tmp_path / "nowhere"))

    def deleting(state, batch):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return update(state, batch)

    with pytest.raises(FuncrobustError, match="nor can its state") as error:
        go(tmp_path / "run", make_plan(update=deleting))
    assert "\n" not in str(error.value)


def test_two_processes_cannot_write_one_run(tmp_path):
    run = RunFolder.create(tmp_path, "cure-train", {}, "run")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException), run.locked():
            os.write(writing, b"x")
            signal.pause()
        os._exit(0)
    assert os.read(reading, 1) == b"x"
    try:
        with pytest.raises(FuncrobustError, match="under way in another process"):
            go(run.path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert go(run.path).status == "finished", "the lock has died with its process"


def test_of_two_that_want_one_name_in_the_same_moment_one_gets_it(tmp_path):
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            with suppress(FuncrobustError):
                RunFolder.create(tmp_path, "cure-train", {"pid": os.getpid()}, "run")
                code = 0
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0] + [1] * 7
    winner = children[codes.index(0)]
    assert RunFolder.open(tmp_path / "run").config == {"pid": winner}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_first_signal_stops_after_the_update_and_saves(tmp_path, whole, name):
    before = signal.getsignal(getattr(signal, name))

    def stopping(state, batch):
        if int(state.step) == 6:
            os.kill(os.getpid(), getattr(signal, name))
        return update(state, batch)

    outcome = go(tmp_path / "run", make_plan(update=stopping, save_every=1e9))
    assert (outcome.status, outcome.position.step) == ("interrupted", 7)
    assert load_state(tmp_path / "run" / "state.safetensors")[1]["step"] == 7
    assert signal.getsignal(getattr(signal, name)) == before
    equals(go(tmp_path / "run"), tmp_path / "run", whole)


def test_a_second_signal_stops_at_once(tmp_path, whole):
    def stopping(state, batch):
        if int(state.step) == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")
        return update(state, batch)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", make_plan(update=stopping, save_every=1e9))
    assert load_state(tmp_path / "run" / "state.safetensors")[1]["step"] == 5
    equals(go(tmp_path / "run"), tmp_path / "run", whole)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, monkeypatch):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hung_up(state, batch):
        os.kill(os.getpid(), signal.SIGHUP)
        return update(state, batch)

    try:
        assert go(tmp_path / "run", make_plan(update=hung_up)).status == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sink_that_fails_is_left_alone(tmp_path, whole):
    def broken(record):
        raise ConnectionError("no network")

    equals(go(tmp_path / "run", sink=broken), tmp_path / "run", whole)


# --- result.json --------------------------------------------------------------------------------


def test_a_result_counts_only_with_its_files(tmp_path):
    run = RunFolder.create(tmp_path, "cure-train", {}, "run")
    assert run.result() is None
    run.file("curves.png").write_bytes(b"x")
    run.conclude({"status": "finished", "step": 3})
    assert json.loads(run.file("result.json").read_text()) == {
        "status": "finished", "step": 3, "files": ["config.json", "curves.png"],
    }  # fmt: skip
    assert run.result()["step"] == 3
    run.file("curves.png").unlink()
    assert run.result() is None
