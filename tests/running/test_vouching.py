"""A run's folder may be anybody's: its config.json chooses neither code nor places outside."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
from cards import CARD
from problems import run_cli

from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.core.errors import FuncrobustError
from funcrobust.report.runs import RunFolder
from funcrobust.running.commandline import command
from funcrobust.running.config import resume_command, resumed, to_config
from funcrobust.running.dataset import dataset_for
from funcrobust.running.options import command_name


def stored(tmp_path, cls=CureTrain, name="run", **changes):
    """A run folder with such options in its config.json, whatever they are."""
    options = cls.filled({"preset": "digits"} if cls is CureTrain else {})
    config = to_config(options) | changes
    return RunFolder.create(tmp_path, command_name(cls), config, name).path


def parsed(line):
    """The options that a pasted command means."""
    words = shlex.split(line)
    words = words[words.index("--resume") - 1 :]
    module = import_module(f"funcrobust.commands.{words[0].replace('-', '_')}")
    cls = {"cure-train": module.__dict__.get("CureTrain"), "psi-train": module.__dict__.get(
        "PsiTrain")}[words[0]]  # fmt: skip
    call, bound, _ = command(cls, "", words[1:]).parse_args(words[1:], exit_on_error=False)
    return call(*bound.args, **bound.kwargs)


def test_code_in_a_run_folder_is_not_imported(tmp_path):
    (tmp_path / "evilmod.py").write_text("open('mark', 'w')\ndef make(): pass\n")
    for cls in (CureTrain, PsiTrain):
        folder = stored(tmp_path, cls, name=command_name(cls), model="evilmod:make")
        done = run_cli(command_name(cls), "--resume", folder.name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{command_name(cls)} --resume {folder.name} --model evilmod:make" in done.stderr
        assert not (tmp_path / "mark").exists()


FOREIGN = [
    (CureTrain, {"model": "evilmod:make"}, "--model evilmod:make"),
    (CureTrain, {"model": "x:y; rm -rf z"}, "--model x:y; rm -rf z"),
    (CureTrain, {"data_dir": "/elsewhere"}, "--data-dir /elsewhere"),
    (CureTrain, {"data_dir": "~/data"}, f"--data-dir {Path.home()}/data"),
    (CureTrain, {"dataset": "/etc/secrets.npz"}, "--dataset /etc/secrets.npz"),
    (CureTrain, {"dataset": "../a b"}, "--dataset ../a b"),
    (CureTrain, {"hat": 1.0, "helper": "../helper"}, "--helper ../helper"),
    (CureTrain, {"hat": 1.0, "helper": "robustbench:X"}, "--helper robustbench:X"),
    (PsiTrain, {"checkpoint": "/etc/passwd"}, "--checkpoint /etc/passwd"),
    (PsiTrain, {"checkpoint": "run/../../x"}, "--checkpoint run/../../x"),
    (PsiTrain, {"checkpoint": "robustbench:X"}, "--checkpoint robustbench:X"),
    (PsiTrain, {"checkpoint": "~nobody-at-all/x"}, "--checkpoint ~nobody-at-all/x"),
    (PsiTrain, {"checkpoint": "relative"}, "--checkpoint relative"),
    (PsiTrain, {"dataset": "run-2/mine"}, "--dataset run-2/mine"),
    (PsiTrain, {"model": "evilmod:make", "checkpoint": "/x", "data_dir": "/y"},
     "--data-dir /y --checkpoint /x --model evilmod:make"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "changes", "said"), FOREIGN)
def test_what_a_file_may_not_choose_is_shown_and_taken_when_said_again(
    tmp_path, monkeypatch, cls, changes, said
):
    """The refusal has the command to paste, and that one is taken."""
    monkeypatch.chdir(tmp_path)
    stored(tmp_path, cls, **changes)
    with pytest.raises(FuncrobustError, match="a file may choose neither code nor") as refused:
        resumed(cls(resume=Path("run"), device="cpu"))
    text = str(refused.value)
    shown = text.partition(" says ")[2].partition(", and a file may")[0]
    assert sorted(shown.split(" --")) == sorted(said.split(" --")) or shown == said
    again = parsed(text.rpartition("say it again: ")[2])
    assert again.device == "cpu"
    found = resumed(again)
    for name, value in changes.items():
        assert str(getattr(found, name)) == str(value).replace("~/", f"{Path.home()}/")


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (CureTrain, {}), (CureTrain, {"model": "resnet20"}), (CureTrain, {"dataset": "cifar100"}),
        (CureTrain, {"hat": 1.0, "helper": "cifar10-standard-small"}),
        (CureTrain, {"dataset": "run/own.npz", "data_dir": "run/data"}),
        (PsiTrain, {"checkpoint": "cifar10-linf-tiny", "dataset": "cifar10"}),
        (PsiTrain, {"checkpoint": "run/before.safetensors"}),
    ],
)  # fmt: skip
def test_what_is_known_or_the_runs_own_needs_no_word(tmp_path, monkeypatch, cls, changes):
    monkeypatch.chdir(tmp_path)
    folder = stored(tmp_path, cls, **changes)
    (folder / "before.safetensors").write_bytes(b"")
    found = resumed(cls(resume=Path("run")))
    assert found.model == changes.get("model", cls.filled(
        {"preset": "digits"} if cls is CureTrain else {}).model)  # fmt: skip


def test_another_value_than_the_runs_own_is_refused(tmp_path):
    folder = stored(tmp_path, model="evilmod:make")
    with pytest.raises(FuncrobustError, match="was run with --model evilmod:make, not with --mod"):
        resumed(CureTrain(resume=folder, model="evilmod:other"))
    plain = stored(tmp_path, name="plain")
    with pytest.raises(FuncrobustError, match="with --model preact-tiny, not with --model a:b"):
        resumed(CureTrain(resume=plain, model="a:b"))


def test_a_link_in_the_run_is_where_it_leads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = stored(tmp_path, dataset="run/data")
    (tmp_path / "away").mkdir()
    (folder / "data").mkdir()
    assert resumed(CureTrain(resume=Path("run"))).dataset == "run/data"
    (folder / "data").rmdir()
    (folder / "data").symlink_to(tmp_path / "away")
    with pytest.raises(FuncrobustError, match="run/data is a link that leads out of the folder"):
        resumed(CureTrain(resume=Path("run")))


@pytest.mark.parametrize("name", ["console.log", "metrics.jsonl", "config.json", "strips"])
@pytest.mark.parametrize("target", ["away", "nowhere", "loop"])
def test_a_run_is_not_led_to_write_elsewhere(tmp_path, name, target):
    folder = stored(tmp_path)
    (tmp_path / "away").write_text("mine")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / name if target == "loop" else tmp_path / target)
    with pytest.raises(FuncrobustError, match=f"{name} is a link that leads out"):
        resumed(CureTrain(resume=folder))


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders there")
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "state.safetensors"])
def test_a_pipe_in_a_run_is_not_waited_for(tmp_path, name):
    folder = stored(tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(FuncrobustError, match=f"{name} is no plain file"):
        resumed(CureTrain(resume=folder))


def test_an_interrupted_run_says_the_whole_command(tmp_path):
    folder = stored(tmp_path, PsiTrain, checkpoint="/a b/c", model="my.net:make")
    line = resume_command(RunFolder.open(folder), "psi-train")
    assert line.endswith(f"psi-train --resume {folder} --checkpoint '/a b/c' --model my.net:make")
    assert resumed(parsed(line)).checkpoint == "/a b/c"
    plain = stored(tmp_path, name="plain")
    line = resume_command(RunFolder.open(plain), "cure-train")
    assert line.endswith(f"cure-train --resume {plain}")


def test_a_card_does_not_choose_what_is_read():
    assert dataset_for(None, CARD) == "cifar10"
    assert dataset_for("mine.npz", CARD) == "mine.npz"
    card = replace(CARD, dataset="/etc; x")
    with pytest.raises(FuncrobustError, match="if it is right, say --dataset '/etc; x'"):
        dataset_for(None, card)
    assert dataset_for("/etc; x", card) == "/etc; x"


def test_json_of_a_run_folder_is_written_for_reading(tmp_path):
    """What `RunFolder.create` writes, strict JSON takes."""
    folder = stored(tmp_path)
    assert json.loads((folder / "config.json").read_text())["command"] == "cure-train"
    assert RunFolder.open(folder).config["preset"] == "digits"


@pytest.mark.parametrize(
    "record",
    [
        {}, {"epoch": 1}, {"epoch": "1", "step": 2}, {"epoch": 1, "step": -7},
        {"epoch": 1.5, "step": 2}, {"epoch": None, "step": 2}, {"epoch": True, "step": 2},
        {"epoch": 1, "step": 2, "train_worst": "x"}, {"epoch": 1, "step": 2, "test_clean": [0.5]},
        {"epoch": 1, "step": 2, "lr": {"a": 1}},
    ],
)  # fmt: skip
def test_records_of_another_form_are_refused(tmp_path, record):
    folder = stored(tmp_path)
    good = {"epoch": 1, "step": 2, "train_worst": None, "lr": 0.1}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(good)}\n")
    assert resumed(CureTrain(resume=folder)).resume == folder
    (folder / "metrics.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    with pytest.raises(FuncrobustError, match=r"a record in .*metrics\.jsonl"):
        resumed(CureTrain(resume=folder))


NOT_A_VALUE = [None, "x", "", -7, 10**19, 1.5, True, [], {}, [[[]]], {"a": {"b": 1}}, "\0"]


@pytest.mark.parametrize("value", NOT_A_VALUE, ids=range(len(NOT_A_VALUE)))
@pytest.mark.parametrize("cls", [CureTrain, PsiTrain])
def test_an_option_of_another_type_is_refused_or_is_one(tmp_path, monkeypatch, cls, value):
    """Each in turn has the value in config.json."""
    monkeypatch.chdir(tmp_path)
    path = stored(tmp_path, cls) / "config.json"
    record = json.loads(path.read_text())
    for name in (field.name for field in fields(cls) if field.name != "resume"):
        changed = record | {"options": record["options"] | {name: value}}
        path.write_text(json.dumps(changed))
        said, found = "", None
        try:
            found = resumed(cls(resume=path.parent))
        except FuncrobustError as error:
            said = str(error)
        assert (found is None) == bool(said), name
        assert "\n" not in said
        assert len(said) < 1000
        if found is not None:
            assert to_config(found)[name] == value


def test_a_name_that_is_nothing_here_is_no_place_to_say_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = replace(CARD, dataset="mydata")
    with pytest.raises(FuncrobustError, match="nothing called so: use --dataset FILE"):
        dataset_for(None, card)
    (tmp_path / "mydata").mkdir()
    with pytest.raises(FuncrobustError, match="if it is right, say --dataset mydata"):
        dataset_for(None, card)
