"""--minutes: an update is timed, the length follows, and the run is that length's to the bit."""

from __future__ import annotations

import json
import re
import time
from types import SimpleNamespace

import pytest
import torch
from problems import run_cli
from safetensors.torch import load_file

from funcrobust.commands import cure_train, psi_train
from funcrobust.core.errors import FuncrobustError
from funcrobust.report.console import Reporter
from funcrobust.running import budget
from funcrobust.running.budget import MARGIN, Budget, update_seconds


def at(monkeypatch, now):
    monkeypatch.setattr("funcrobust.running.budget.time", SimpleNamespace(**vars(time) | now))


def test_as_many_are_counted_as_fit_in_the_time_that_is_left(monkeypatch):
    at(monkeypatch, {"monotonic": lambda: 130.0})
    ten = Budget(minutes=10, began=100.0)  # 570 seconds are left
    assert ten.left == 570
    assert ten.count(each=7.0, once=41.0, what="", smaller="") == int((MARGIN * 570 - 41) / 7)


def test_none_that_fits_is_refused_with_the_minutes_that_it_takes(monkeypatch):
    at(monkeypatch, {"monotonic": lambda: 130.0})
    with pytest.raises(FuncrobustError, match="one epoch alone takes 80 s") as refused:
        Budget(minutes=2, began=100.0).count(80.0, 40.0, "one epoch", "a smaller --model")
    # What is proposed would have been enough, and a tenth less not.
    proposed = float(re.search(r"about --minutes ([\d.]+), or", str(refused.value))[1])
    assert Budget(minutes=proposed + 0.1, began=100.0).count(80.0, 40.0, "", "") >= 1
    with pytest.raises(FuncrobustError):
        Budget(minutes=proposed * 0.9, began=100.0).count(80.0, 40.0, "", "")


def rehearsed(monkeypatch, seconds, cycle, minutes):
    """Rehearse on a clock that only updates move on."""
    clock, steps = [0.0], []

    def update(state, step):
        steps.append(step)
        clock[0] += seconds(step)
        return state + 1, {"loss": torch.tensor(0.0)}

    now = {"perf_counter": lambda: clock[0], "monotonic": lambda: clock[0]}
    at(monkeypatch, now)
    found = update_seconds(
        lambda s, b: update(s, b), lambda step: step, 0, Budget(minutes, began=0.0), cycle
    )
    return found, steps


def test_whole_cycles_are_timed_so_that_a_dear_update_counts_as_often_as_it_comes(monkeypatch):
    found, steps = rehearsed(monkeypatch, lambda step: 9.0 if step % 4 == 0 else 1.0, 4, 60)
    assert found == 3.0  # (9 + 1 + 1 + 1) / 4
    assert steps == list(range(2)) + list(range(4, 4 + len(steps) - 2))  # whole cycles of the run


def test_a_rehearsal_ends_when_the_budget_is_spent(monkeypatch):
    found, steps = rehearsed(monkeypatch, lambda _: 30.0, 1000, 1)
    assert found == 30.0
    assert len(steps) == 3


@pytest.fixture
def on_a_clock_of_its_own(monkeypatch):
    """What is found is replaced by what the test says, after the rehearsal has been."""

    def fixed(command, each):
        for name in ("update_seconds", "measure_seconds"):
            real = getattr(budget, name)

            def rehearse(*args, real=real):
                assert real(*args) > 0
                return each if real is budget.update_seconds else 0.0

            monkeypatch.setattr(f"funcrobust.commands.{command}.recipe.{name}", rehearse)

    monkeypatch.setattr(budget, "SHARE", 0.0)  # one cycle
    return fixed


def options_of(run):
    return json.loads(run.file("config.json").read_text())["options"]


SMALL = {
    "test_examples": 100, "evaluate_examples": 50, "evaluate_steps": 2, "seed": 3,
}  # fmt: skip


def test_the_length_is_kept_in_place_of_the_minutes_and_the_rehearsal_leaves_no_trace(
    tmp_path, on_a_clock_of_its_own
):
    def train(name, **given):
        options = {"preset": "digits", "train_examples": 200, "out": tmp_path, "name": name}
        options = cure_train.CureTrain.filled(options | SMALL | given)
        return cure_train.run(options, Reporter.silent()).run

    # 3 updates an epoch and 20 of calibration, twice: 0.95 * 3600 / (23 * 60) = 2.5 epochs.
    on_a_clock_of_its_own("cure_train", 60.0)
    timed = train("timed", minutes=80)
    assert options_of(timed)["epochs"] == 2
    assert options_of(timed)["minutes"] is None
    command = json.loads(timed.file("checkpoint.json").read_text())["command"]
    assert "--epochs 2" in command
    assert "--minutes" not in command
    again = train("again", epochs=2)
    ours, theirs = (load_file(run.file("checkpoint.safetensors")) for run in (timed, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_psi_train_has_its_updates_counted(tmp_path, digits_run, on_a_clock_of_its_own):
    on_a_clock_of_its_own("psi_train", 60.0)
    given = {"checkpoint": str(digits_run[0]), "heldout_examples": 20, "minutes": 10, "strips": 0}
    options = psi_train.PsiTrain.filled(SMALL | given | {"out": tmp_path, "name": "psi"})
    run = psi_train.run(options, Reporter.silent()).run
    # 9.5 minutes, of which the ten records take 20/64 of one each.
    assert options_of(run)["updates"] == 6
    assert options_of(run)["minutes"] is None


def test_minutes_beside_a_length_are_refused():
    for words in (("cure-train", "--epochs", "3"), ("psi-train", "--updates", "9")):
        refused = run_cli(*words, "--minutes", "1")
        assert refused.returncode == 2
        assert "--minutes takes its place" in refused.stderr
