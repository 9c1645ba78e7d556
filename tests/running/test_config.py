"""config.json, strictly there and back; and the command that would do the same again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.presets import PRESETS
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.core.errors import FuncrobustError
from funcrobust.report.runs import RunFolder
from funcrobust.running.commandline import command
from funcrobust.running.config import as_command, from_config, resumed, said, to_config
from funcrobust.running.holding import _spectating

OPTIONS = [
    *(CureTrain.filled({"preset": name}) for name in PRESETS),
    CureTrain.filled({"preset": "paper-short", "compile": True}),
    CureTrain.filled({"preset": "digits", "capture": False}),
    CureTrain.filled({
        "preset": "strong", "attack": "n-fgsm", "noise": 1.5, "epsilon": 4 / 255, "compile": False,
        "regularisers": {"elle": 1000.0, "gradient-alignment": 0.2}, "data_dir": Path("a b"),
        "out": Path("/elsewhere"), "seed": 2**63 - 1, "model": "my.module:net work",
    }),
    PsiTrain(drift_weight=0.5, learn_starts=9, starts_rate=3.0),
    PsiTrain.filled({
        "objective": "drift", "targeted": False, "label": "3", "derivative": "truncated:4",
        "start": "own", "checkpoint": "runs/x", "epsilon": 8 / 255, "anchor": 0.0,
        "constraint": "fourier", "compile": True,
    }),
]  # fmt: skip


def read_back(options):
    return json.loads(json.dumps(to_config(options)))


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_there_and_back(options):
    assert from_config(type(options), read_back(options), "config.json") == options


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_the_command_that_would_do_the_same_again(options):
    """Parsed, it gives the same options, but for where things lie."""
    line = as_command(options)
    _, _, name, *words = shlex.split(line)
    module = import_module(f"funcrobust.commands.{name.replace('-', '_')}")
    cls = getattr(module, type(options).__name__)
    call, bound, _ = command(cls, "", words).parse_args(words, exit_on_error=False)
    parsed = call(*bound.args, **bound.kwargs)
    assert parsed == replace(options, data_dir=None, out=Path("runs"), name=None)


def test_a_command_says_what_differs_and_no_more():
    options = CureTrain.filled({"preset": "digits", "epochs": 3, "out": Path("/x"), "h": 3.0})
    assert as_command(options) == "python cli.py cure-train --preset digits --epochs 3"
    drift = PsiTrain.filled({"objective": "drift", "label": "random"})
    expected = "python cli.py psi-train --objective drift --label random"
    assert as_command(drift) == expected
    restoration = PsiTrain(restore=3.0)
    expected = "python cli.py psi-train --objective restoration --restore 3"
    assert as_command(restoration) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backward": "adjoint"}, "it has 'backward'"),
        ({"derivativ": "adjoint"}, "it has 'derivativ' (did you mean 'derivative'?)"),
        ({"steps": "5"}, "expected int, got '5'"), ({"steps": 5.0}, "expected int, got 5.0"),
        ({"steps": True}, "expected int, got True"), ({"targeted": 1}, "expected bool, got 1"),
        ({"checkpoint": 3}, "checkpoint"), ({"out": 3}, "expected str, got 3"),
        ({"start": "nowhere"}, "unknown --start 'nowhere'"), ({"anchor": -1.0}, "--anchor"),
        ({"radius": None}, "radius"),
    ],
)  # fmt: skip
def test_a_config_of_another_form_is_refused_in_one_line(change, message):
    config = read_back(PsiTrain()) | change
    with pytest.raises(FuncrobustError) as refused:
        from_config(PsiTrain, config, "runs/x/config.json")
    assert str(refused.value).startswith("runs/x/config.json")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_config_that_lacks_an_option_is_of_another_form():
    config = read_back(PsiTrain())
    del config["radius"]
    with pytest.raises(FuncrobustError, match="another version's form: it lacks 'radius'"):
        from_config(PsiTrain, config, "config.json")


@pytest.fixture
def folder(tmp_path):
    options = CureTrain.filled({"preset": "digits", "seed": 7})
    return RunFolder.create(tmp_path, "cure-train", to_config(options), "run").path


def test_a_run_resumed_has_its_own_options(folder):
    found = resumed(CureTrain(resume=folder, device="cpu", log="tensorboard"))
    expected = CureTrain.filled({"preset": "digits", "seed": 7, "device": "cpu"})
    assert found == replace(expected, resume=folder, log="tensorboard")
    assert resumed(CureTrain(seed=3)) == CureTrain(seed=3)


def test_what_a_resumed_run_would_ignore_is_refused(folder):
    with pytest.raises(FuncrobustError, match="leave --seed, --h out"):
        resumed(CureTrain(resume=folder, seed=3, h=1.0))
    with pytest.raises(FuncrobustError, match="leave --h out"):
        CureTrain.filled({"resume": folder, "h": 3.0})  # the default's own value
    with pytest.raises(FuncrobustError, match="is a cure-train run: psi-train cannot resume it"):
        resumed(PsiTrain(resume=folder))
    with pytest.raises(FuncrobustError, match="nowhere is not a run folder"):
        resumed(PsiTrain(resume=Path("nowhere")))


def test_what_is_said_beside_resume_is_meant_though_it_is_the_default(folder):
    kept = {"device": "cpu", "log": "tensorboard", "save_every": 7.0}
    stored = CureTrain.filled({"preset": "digits", "seed": 7, **kept})
    (folder / "config.json").unlink()
    folder.rmdir()
    RunFolder.create(folder.parent, "cure-train", to_config(stored), "run")
    words = ["--resume", str(folder), "--log", "none", "--save-every", "60", "--device", "auto"]
    call, bound, _ = command(CureTrain, "", words).parse_args(words, exit_on_error=False)
    plain = {"device": "auto", "log": "none", "save_every": 60.0}
    for options in (call(*bound.args, **bound.kwargs), CureTrain(resume=folder, **plain)):
        assert resumed(options) == replace(stored, resume=folder, **plain)
    assert resumed(CureTrain(resume=folder)) == replace(stored, resume=folder)
    # `replace` says every field: what differs is meant, and nothing else.
    assert resumed(replace(CureTrain(), resume=folder)) == replace(stored, resume=folder)
    assert resumed(CureTrain(resume=folder, data_dir=None)) == replace(stored, resume=folder)
    with pytest.raises(FuncrobustError, match="leave --seed out"):
        resumed(CureTrain(resume=folder, seed=0))


def test_a_process_that_watches_hears_what_was_said(folder, tmp_path):
    """Else one of two would compute on the run's old device."""
    options = _spectating(CureTrain(resume=folder, device="auto"), tmp_path, {})
    assert said(options) == {"resume": tmp_path, "device": "auto"}
