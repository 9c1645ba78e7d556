"""The ψ-study: its re-enactment, its scores, and that it can be cut short and taken up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.commands.study import Study, recipe
from funcrobust.report.console import Reporter


@pytest.fixture
def options(digits_run, tmp_path):
    run = str(digits_run[0])
    return Study(
        checkpoint=run, judge=run, images=30, examples=40, attack_steps=2, updates=3, out=tmp_path,
        precision="fp32",
    )  # fmt: skip


def run(options, *variants):
    with Reporter.silent() as reporter:
        return recipe.study(replace(options, variants=variants), reporter)


def test_scores_of_every_variant(options):
    rows = run(options, "published", "drift alone")
    assert list(rows) == ["before", "published", "drift alone"]
    for row in rows.values():
        assert 0 <= row["robust"] <= row["clean"] <= 1
        assert [p["steps"] for p in row["gaussian"]] == [0, *recipe.MARKS]
        assert row["gaussian"][-1]["agreement"] > row["noise"][0]["agreement"]
        assert all(p["frechet"] > 0 for kind in recipe.STARTS for p in row[kind])
    starts = [row["gaussian"][0] for row in rows.values()]
    assert starts[0] == starts[1] == starts[2], "every variant begins from the same images"
    assert rows["drift alone"]["drift"] != rows["before"]["drift"]
    written = json.loads((options.out / "study.json").read_text())
    assert written["variants"] == json.loads(json.dumps(rows))
    assert (options.out / "gaussian.png").stat().st_size > 5000
    assert (options.out / "noise.png").stat().st_size > 5000


def test_a_transfer_that_is_there_is_taken_up(options, monkeypatch):
    first = run(options, "keep 40")
    monkeypatch.setattr(recipe, "psi_train", lambda *_, **__: pytest.fail("trained again"))
    assert run(options, "keep 40") == first
    by_path = run(options, str(options.out / "keep-40"))
    assert by_path[str(options.out / "keep-40")] == first["keep 40"]


def test_another_experiment_is_not_taken_up(options):
    run(options, "keep 40")
    with pytest.raises(fr.FuncrobustError, match="another seed"):
        run(replace(options, seed=1), "keep 40")
    (options.out / "keep-40" / "checkpoint.json").unlink()
    (options.out / "keep-40" / "state.safetensors").unlink()  # killed at its very beginning
    assert run(options, "keep 40")["keep 40"]["drift"] > 0


def test_the_published_code_moves_statistics_alone(digits_run, options):
    model = fr.functionalize(checkpoints.load(digits_run[0])[0])
    after = recipe.published(model, data.load("digits"), options)
    assert all(torch.equal(after.params[k], model.params[k]) for k in model.params)
    moved = [k for k in model.buffers if not torch.equal(after.buffers[k], model.buffers[k])]
    assert moved
    assert all("running" in k or "num_batches" in k for k in moved)
    x = data.as_float(data.load("digits").x_test[:5])
    assert not torch.equal(after.predict(after.params, x), model.predict(model.params, x)), (
        "predict is bound to the statistics"
    )


def test_every_variant_is_made_of_options_that_exist():
    for changes in recipe.VARIANTS.values():
        PsiTrain.filled(changes or {})
    folders = [name.replace(", ", "-").replace(" ", "-") for name in recipe.VARIANTS]
    assert len(set(folders)) == len(folders)


def test_refused(options):
    with pytest.raises(fr.FuncrobustError, match="no variant"):
        run(options, "nonsense")
    with pytest.raises(fr.FuncrobustError, match="--images"):
        replace(options, images=1)
    assert not list(options.out.iterdir())
