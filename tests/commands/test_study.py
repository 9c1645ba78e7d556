"""The ψ-study: its re-enactment, its scores, and that it can be cut short and taken up."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.commands.study import Study, drawing, recipe, scores, sheet
from funcrobust.commands.study.variants import is_trained
from funcrobust.report.console import Reporter


@pytest.fixture
def options(digits_run, tmp_path):
    run = str(digits_run[0])
    return Study(
        checkpoint=run, judges=(run,), images=30, choosing=20, examples=40, attack_steps=2,
        updates=3, out=tmp_path, precision="fp32",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Ways of fewer steps: what is tested is what is made of them."""
    monkeypatch.setattr(drawing, "MARKS", (1, 6))
    monkeypatch.setattr(drawing, "WHOLE", (2, 4))
    monkeypatch.setattr(drawing, "CLAIMED", (4,))
    monkeypatch.setattr(scores, "RESAMPLED", 4)


def run(options, *variants):
    if not any(map(is_trained, variants)):
        options = replace(options, updates=None)
    with Reporter.silent() as reporter:
        return recipe.study(replace(options, variants=variants), reporter)


def test_scores_of_every_variant(options):
    rows = run(options, "published", "drift alone")
    assert list(rows) == ["before", "published", "drift alone"]
    judge = options.judges[0]
    for (row,) in rows.values():
        assert 0 <= row["robust"] <= row["clean"] <= 1
        for kind in scores.KINDS:
            every, best, tried = (row[kind][name] for name in ("points", "best", "choices"))
            assert [(p["way"], p["steps"]) for p in tried] == [
                ("start", 0), ("L2", 1), ("L2", 6), ("gradient", 2), ("gradient", 4),
            ]  # fmt: skip
            chosen = min(tried[1:], key=lambda p: p["judges"][judge]["frechet"])
            assert (best["way"], best["steps"]) == (chosen["way"], chosen["steps"])
            shown = {("start", 0), ("gradient", 4), (best["way"], best["steps"])}
            assert {(p["way"], p["steps"]) for p in every} == shown
            assert all(p["judges"][judge]["frechet"] > 0 for p in every)
            assert best in every[1:]
            assert best["judges"][judge]["spread"] > 0
            assert row[kind]["stability"] >= 1
            assert row[kind]["copies"].keys() >= {"features, median", "pixels, nearest"}
        walked = row["gaussian"]["choices"][2]["judges"][judge]
        assert walked["agreement"] > row["noise"]["choices"][0]["judges"][judge]["agreement"]
    starts = [row["gaussian"]["points"][0] for (row,) in rows.values()]
    assert starts[0] == starts[1] == starts[2], "every variant begins from the same images"
    assert rows["drift alone"][0]["drift"] != rows["before"][0]["drift"]
    written = json.loads((options.out / "study.json").read_text())
    assert written["variants"] == json.loads(json.dumps(rows))
    for kind in scores.KINDS:
        for way in ("l2", "gradient"):
            assert (options.out / f"{kind}-{way}.png").stat().st_size > 5000


def test_what_takes_long_has_a_bar(options, tracks):
    run(options, "before")
    assert tracks.count((f"spread, {options.judges[0]}", 4)) == len(scores.KINDS)
    assert tracks.count(("copies", 4)) == len(scores.KINDS)


def test_the_best_is_chosen_on_other_images(options, monkeypatch):
    """What the first judge likes of the choosing images decides, whatever the others look like."""
    liked = {20: ("L2", 1), 30: ("gradient", 4)}
    judged = scores.judged

    def rigged(way, steps, made, wanted, bench):
        look = judged(way, steps, made, wanted, bench)
        if (way, steps) == liked[len(made)]:
            look.point["judges"][options.judges[0]]["frechet"] = 1e-9
        return look

    monkeypatch.setattr(scores, "judged", rigged)
    (row,) = run(options, "before")["before"]
    assert (row["noise"]["best"]["way"], row["noise"]["best"]["steps"]) == ("L2", 1)


def test_seeds_and_judges(options):
    """Trainings of their own, a mean with its spread, and a column a judge."""
    second = str(options.out.parent / "second")
    shutil.copytree(options.judges[0], second)
    options = replace(options, repeats=2, judges=(*options.judges, second))
    rows = run(options, "control")
    assert len(rows["before"]) == 1
    assert len(rows["control"]) == 2
    assert rows["control"][0]["clean"] != rows["control"][1]["clean"] or (
        rows["control"][0]["drift"] != rows["control"][1]["drift"]
    )
    assert {p.name for p in options.out.iterdir()} >= {"control-0", "control-1"}
    best = rows["control"][0]["noise"]["best"]["judges"]
    assert list(best) == list(options.judges)
    assert best[options.judges[0]] == best[second], "the same network sees the same"


def test_few_images_are_compared_with_few(monkeypatch):
    """As many real images as those that are made need; at 5000, all of CIFAR-10."""
    x_train, x_test = torch.arange(50_000.0), torch.arange(10_000.0)

    class Set:
        def in_memory(self):
            return x_train, x_test

    def found(images):
        return scores.compared(Set(), Study(images=images))

    assert [len(x) for x in found(60)] == [2000, 2000]
    assert [len(x) for x in found(1500)] == [15_000, 3000]
    some = found(60)
    for part, whole in zip(some, (x_train, x_test), strict=True):
        assert torch.equal(part.unique(), part), "in their order, none twice"
        assert part[-1] > 0.9 * len(whole), "from all of the set"
    assert all(torch.equal(a, b) for a, b in zip(some, found(60), strict=True))
    for part, whole in zip(found(5000), (x_train, x_test), strict=True):
        assert torch.equal(part, whole)


def test_what_a_mean_says():
    assert sheet.said([1.0]) == "1.00"
    assert sheet.said([1.0], 0.123) == "1.00 ± 0.12"
    assert sheet.said([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert sheet.said([0.5, 0.6], percent=True) == "55.0% ± 7.1"


def test_a_transfer_that_is_there_is_taken_up(options, monkeypatch):
    first = run(options, "drift, made")
    monkeypatch.setattr(recipe, "psi_train", lambda *_, **__: pytest.fail("trained again"))
    score, scored = recipe.score, []
    monkeypatch.setattr(recipe, "score", lambda *a: scored.append(1) or score(*a))
    assert json.dumps(run(options, "drift, made")) == json.dumps(first)
    assert len(scored) == 1, "before is known, the transfer may have changed"
    by_path = run(options, str(options.out / "drift-made-0"))
    assert by_path[str(options.out / "drift-made-0")] == first["drift, made"]


@pytest.fixture
def scored(monkeypatch):
    """Scores that cost nothing: how often one was asked for, and each tells which it was."""
    times = []
    monkeypatch.setattr(recipe, "score", lambda *_: times.append(1) or {"number": len(times)})
    monkeypatch.setattr(recipe, "tables", lambda *_: None)
    monkeypatch.setattr(sheet, "draw", lambda *_: None)
    return times


def test_an_earlier_study_of_other_settings_is_not_destroyed(options, scored, monkeypatch):
    """Another number, another network under the same name, what an earlier version wrote."""
    own = options.out / "own.safetensors"
    module, card = checkpoints.load(options.checkpoint)
    checkpoints.save(own, module.state_dict(), card)
    options = replace(options, checkpoint=str(own))
    for _ in range(2):
        run(options, "before")
    assert len(scored) == 1

    sheet_of_it = options.out / "study.json"
    written = sheet_of_it.read_text()

    monkeypatch.setattr(recipe, "make_bench", lambda *_: pytest.fail("judged before the refusal"))

    def refuses(options, said):
        there = sheet_of_it.read_bytes()
        with pytest.raises(fr.FuncrobustError, match=said):
            run(options, "before")
        assert (len(scored), sheet_of_it.read_bytes()) == (1, there)

    other = "study.json holds a study with another "
    refuses(replace(options, images=40, attack_steps=3), f"{other}images, attack_steps: use")
    checkpoints.save(own, {n: t + 1 for n, t in module.state_dict().items()}, card)
    refuses(options, f"{other}sha256: use another --out, or delete it")
    checkpoints.save(own, module.state_dict(), card)
    for damaged in ("{", "[]", '{"variants": 3}', "null", written.replace("variants", "rows")):
        sheet_of_it.write_text(damaged)
        refuses(options, "holds no study that can be read: use another --out, or delete it")
    lacking = json.loads(written)
    del lacking["sha256"]
    sheet_of_it.write_text(json.dumps(lacking))
    refuses(options, f"{other}sha256")
    sheet_of_it.unlink()
    monkeypatch.setattr(recipe, "make_bench", scores.make_bench)
    run(options, "before")
    assert len(scored) == 2


def test_a_network_of_another_norm_is_not_transferred(options, scored):
    own = options.out / "own.safetensors"
    module, card = checkpoints.load(options.checkpoint)
    checkpoints.save(own, module.state_dict(), replace(card, constraint="l2", epsilon=0.5))
    options = replace(options, checkpoint=str(own))
    with pytest.raises(fr.FuncrobustError, match=r"ε = 0.5 is a radius in l2.*another --check"):
        run(options, "control")
    assert not scored
    run(replace(options, updates=None), "before")


def test_fewer_repeats_drop_no_seed(options, scored, monkeypatch):
    monkeypatch.setattr(recipe, "transferred", lambda *_: options.checkpoint)
    run(replace(options, repeats=3), "control", "default")
    run(options, "control")
    rows = json.loads((options.out / "study.json").read_text())["variants"]
    assert [[row["number"] for row in found] for found in rows.values()] == [
        [1], [8, 3, 4], [5, 6, 7],
    ]  # fmt: skip
    assert list(rows) == ["before", "control", "default"]


def test_another_experiment_is_not_taken_up(options):
    run(options, "drift, made")
    with pytest.raises(fr.FuncrobustError, match="another updates"):
        run(replace(options, updates=4), "drift, made")
    (options.out / "drift-made-0" / "checkpoint.json").unlink()
    (options.out / "drift-made-0" / "state.safetensors").unlink()  # killed at its very beginning
    assert run(options, "drift, made")["drift, made"][0]["drift"] > 0


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
    folders = [recipe.folder_of(name) for name in recipe.VARIANTS]
    assert len(set(folders)) == len(folders)


def test_options_of_trainings_need_one(options):
    alone = replace(options, updates=None)
    for variants in (("before",), ("before", "published"), (str(options.out),)):
        with pytest.raises(fr.FuncrobustError, match="--repeats does nothing here"):
            replace(alone, variants=variants, repeats=2)
    with pytest.raises(fr.FuncrobustError, match="--updates does nothing here"):
        replace(options, variants=("before",))
    replace(options, variants=("published",))
    replace(options, variants=("control",), repeats=2)
    replace(options, repeats=2)
    with pytest.raises(fr.FuncrobustError, match="a study needs somebody to score"):
        replace(options, judges=("none", *options.judges))


def test_refused(options):
    with pytest.raises(fr.FuncrobustError, match="no variant"):
        run(options, "nonsense")
    with pytest.raises(fr.FuncrobustError, match="--images"):
        replace(options, images=1)
    assert not list(options.out.iterdir())
