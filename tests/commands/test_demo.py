"""``demo``: what it tells the commands that it is made of."""

from __future__ import annotations

from types import SimpleNamespace

from funcrobust.commands import demo
from funcrobust.report.console import Reporter


def test_all_of_it_follows_from_the_seed(tmp_path, monkeypatch):
    told, run = [], SimpleNamespace(
        path=tmp_path, file=lambda name: tmp_path / name, config={"dataset": "digits"}
    )  # fmt: skip
    found = SimpleNamespace(status="finished", run=run, metrics={"drift_before": 1.0, "drift": 0.5})
    outcomes = {
        "cure_train": found, "psi_train": found, "evaluate": {"clean": 0.9, "robust": 0.5},
        "apply": {"start": {}, "before": {}, "after": {}},
    }  # fmt: skip
    for name, outcome in outcomes.items():
        monkeypatch.setattr(
            getattr(demo, name), "run", lambda options, _, out=outcome: told.append(options) or out
        )
    with Reporter.silent() as reporter:
        demo.run(demo.Demo(dataset="digits", seed=7), reporter)
    assert [type(options).__name__ for options in told] == [
        "CureTrain", "PsiTrain", "Evaluate", "Evaluate", "Apply",
    ]  # fmt: skip
    assert {options.seed for options in told} == {7}
