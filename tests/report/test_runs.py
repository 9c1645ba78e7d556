"""Run folders: names, config.json, metrics that survive a crash; and what else gets them."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from funcrobust.core.errors import FuncrobustError
from funcrobust.report import RunFolder
from funcrobust.report.records import shortest
from funcrobust.report.sinks import open_sink, require_sink


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
    for name in ("", "..", "a/b", "/tmp", "x" * 201):
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
    with pytest.raises(FuncrobustError, match=r'pip install "funcrobust\[wandb\]"'):
        open_sink("wandb", run, "psi-train")
    with pytest.raises(FuncrobustError, match="unknown --log"):
        open_sink("paper", run, "psi-train")


def test_whether_a_sink_is_there_is_asked_without_importing_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = r"--log wandb needs its library \(No module named 'wandb'\): pip install"
    with pytest.raises(FuncrobustError, match=said):
        require_sink("wandb")
    with pytest.raises(FuncrobustError, match="unknown --log 'paper': use none, tensorboard"):
        require_sink("paper")
    require_sink("none")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # somebody's, without a spec
    require_sink("wandb")


DEEP = b"[" * 50_000 + b"]" * 50_000
CONFIGS = [
    b"", b"null", b"3", b"[]", b"\xff\xfe", b'{"options": []}', b'{"options": null}', DEEP,
    b'{"options":' * 50_000,
    b'{"options": {}, "options": {}}', b'{"options": {"seed": ' + b"9" * 5000 + b"}}",
    b'{"options": {"name": "\\ud800"}}', b" " * (2**26 + 1),
]  # fmt: skip


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FuncrobustError, match=r"config\.json") as refused:
        RunFolder.open(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders there")
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file_in_a_run_is_not_waited_for(tmp_path, kind):
    run = RunFolder.create(tmp_path, "train", {}, "run")

    def make(path):
        path.unlink(missing_ok=True)
        {
            "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path), "device": lambda: path.symlink_to("/dev/zero"),
        }[kind]()  # fmt: skip

    make(run.path / "metrics.jsonl")
    with pytest.raises(FuncrobustError, match=r"cannot read .*metrics\.jsonl"):
        run.metrics()
    make(run.path / "config.json")
    with pytest.raises(FuncrobustError, match=r"cannot read .*config\.json"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("line", [DEEP, b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_record_that_is_none_is_damage(tmp_path, line):
    run = RunFolder.create(tmp_path, "train", {}, "run")
    (run.path / "metrics.jsonl").write_bytes(line + b'\n{"epoch": 1}\n')
    with pytest.raises(FuncrobustError, match="line 1 is damaged"):
        run.metrics()


@pytest.mark.parametrize("value", [0.32, 1 / 3, 0.1, 1e-7, 3.4e38, 8 / 255, -2.5e-30, 0.5, 7.0])
def test_a_float32_is_written_as_the_shortest_text_that_gives_it_back(tmp_path, value):
    run = RunFolder.create(tmp_path, "train", {})
    single = np.float32(value)
    run.log({"step": 1, "x": torch.tensor(value), "y": float(single)})
    text = run.file("metrics.jsonl").read_text()
    (record,) = run.metrics()
    assert np.float32(record["x"]) == np.float32(record["y"]) == single
    if not float(single).is_integer():
        assert f'"x": {float(str(single))!r}' in text
        assert len(str(record["x"])) <= len(str(float(single)))
    run.truncate_metrics(lambda _: True)
    assert run.file("metrics.jsonl").read_text() == text


@pytest.mark.parametrize("value", [1 / 3, 0.1 + 0.2, 16777217.0, 123456789504.0, 1e300, math.pi])
def test_what_is_no_float32_is_not_changed(value):
    assert shortest({"a": [value, {"b": value}]}) == {"a": [value, {"b": value}]}


def test_an_option_is_kept_to_the_bit(tmp_path):
    """It is no measurement: what was asked comes back, though it is a float32."""
    noisy = float(np.float32(0.32))
    run = RunFolder.create(tmp_path, "train", {"epsilon": noisy}, "run")
    assert RunFolder.open(run.path).config["epsilon"] == noisy
