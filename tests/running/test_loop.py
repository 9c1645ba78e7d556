"""What a run does when its robustness collapses."""

from __future__ import annotations

import pytest
import torch

from funcrobust.core.training.updates import State
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.loop import Plan, drive
from funcrobust.running.state import Position


@pytest.mark.parametrize(("watched", "status", "kept"), [(256, "collapsed", 4), (0, "finished", 8)])
def test_a_collapse_stops_the_run_with_the_state_of_the_epoch_before(
    tmp_path, watched, status, kept
):
    """Two updates an epoch, each of which counts up the only weight; a collapse in the third."""
    figures = [(0.60, 0.35, 0.33), (0.62, 0.37, 0.35), (0.70, 0.36, 0.02), (0.71, 0.36, 0.01)]

    def update(state, _):
        return state._replace(params={"w": state.params["w"] + 1}, step=state.step + 1), {}

    def examine(epoch, _):
        return dict(
            zip(("train_clean", "train_robust", "train_worst"), figures[epoch], strict=True)
        )

    plan = Plan(
        update, lambda step: (step,), steps=8, steps_per_epoch=2, batch_size=1, examine=examine,
        watched=watched,
    )  # fmt: skip
    start = State({"w": torch.zeros(1)}, {}, (), torch.tensor(0), {})
    run = RunFolder.create(tmp_path, "cure-train", {}, "run")
    with Reporter.silent() as reporter:
        outcome = drive(plan, Position(start), run, reporter, lambda _: None)
    assert (outcome.status, float(outcome.state.params["w"])) == (status, kept)
    assert [r["epoch"] for r in run.metrics()] == list(range(1, 4 if watched else 5))
