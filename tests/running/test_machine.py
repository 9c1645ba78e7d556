"""A compiler that fails, and what a run asks of a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from funcrobust.core.errors import FuncrobustError
from funcrobust.report.console import Reporter
from funcrobust.running import machine


def eager(state):
    return state


def ending(monkeypatch, log, kind, asked, default, error):
    """What ``maybe_compile`` or ``maybe_capture`` gives where its check ends so."""

    def checked(update, state, batch):
        if error:
            raise error
        return "replay"

    monkeypatch.setattr(machine, f"{kind}_checked", checked)
    with Reporter.silent(log) as reporter:
        return getattr(machine, f"maybe_{kind}")(
            eager, state=None, batch=None, asked=asked, default=default, reporter=reporter
        )


def compiled(monkeypatch, log, asked, default, error=RuntimeError("no C++ compiler\nhere")):
    return ending(monkeypatch, log, "compile", asked, default, error)


def captured(monkeypatch, log, asked, default, error=RuntimeError("operation not permitted\nhere")):
    return ending(monkeypatch, log, "capture", asked, default, error)


def test_what_does_not_compile_is_trained_all_the_same(monkeypatch, tmp_path):
    log = tmp_path / "log"
    assert compiled(monkeypatch, log, None, True) is eager
    assert "warning: trained without torch.compile, slower: no C++ compiler here" in log.read_text()


def test_but_not_where_it_was_asked_for(monkeypatch, tmp_path):
    with pytest.raises(FuncrobustError, match="no C\\+\\+ compiler here; --no-compile"):
        compiled(monkeypatch, tmp_path / "log", True, False)


def test_a_wrong_compilation_says_itself_what_to_do(monkeypatch, tmp_path):
    wrong = FuncrobustError("the compiled update is off; train with --no-compile")
    with pytest.raises(FuncrobustError) as found:
        compiled(monkeypatch, tmp_path / "log", True, True, wrong)
    assert found.value is wrong


@pytest.mark.parametrize(("asked", "default"), [(None, False), (False, True)])
def test_nothing_is_compiled_unasked(monkeypatch, tmp_path, asked, default):
    assert compiled(monkeypatch, tmp_path / "log", asked, default) is eager
    assert "compil" not in (tmp_path / "log").read_text()


def test_what_cannot_be_replayed_is_trained_all_the_same(monkeypatch, tmp_path):
    log = tmp_path / "log"
    assert captured(monkeypatch, log, None, True) is eager
    said = "warning: trained without a CUDA graph, slower: operation not permitted here"
    assert said in log.read_text()
    with pytest.raises(FuncrobustError, match="not permitted here; --no-capture"):
        captured(monkeypatch, log, True, False)


def test_a_graph_is_of_one_processs_updates(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "processes", lambda: SimpleNamespace(size=2))
    assert captured(monkeypatch, tmp_path / "log", None, True, None) is eager
    machine.require_capture(None, torch.device("cuda"))
    with pytest.raises(FuncrobustError, match="--capture is for one process, and these are 2"):
        machine.require_capture(True, torch.device("cuda"))


@pytest.mark.parametrize(
    ("asked", "default", "found"),
    [(None, False, eager), (False, True, eager), (True, False, "replay"), (None, True, "replay")],
)
def test_a_graph_is_recorded_where_it_is_asked_for(monkeypatch, tmp_path, asked, default, found):
    log = tmp_path / "log"
    assert captured(monkeypatch, log, asked, default, None) == found
    assert ("recorded as a CUDA graph" in log.read_text()) is (found == "replay")


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize(
    ("compile", "capture", "on_gpu", "done"),
    [(None, None, True, "compiled"), (None, True, True, "captured"), (True, None, True, "compiled"),
     (False, None, True, "captured"), (False, False, True, ""), (None, None, False, ""),
     (None, False, True, "compiled"), (None, True, False, "captured"),
     (True, None, False, "compiled")],
)  # fmt: skip
def test_an_update_is_compiled_or_replayed_or_neither(
    monkeypatch, compile, capture, on_gpu, done, compiles
):
    def prepared(name):
        return lambda update, asked, default, **_: (
            name if (default if asked is None else asked) else update
        )

    monkeypatch.setattr(machine, "maybe_compile", prepared("compiled"))
    monkeypatch.setattr(machine, "maybe_capture", prepared("captured"))
    device = torch.device("cuda" if on_gpu else "cpu")
    monkeypatch.setattr(machine, "device_of", lambda _: device)
    given = {"state": None, "batch": None, "reporter": None, "compiles": compiles}
    options = SimpleNamespace(compile=compile, capture=capture)
    if compile is None and not compiles:  # what does not compile unasked is recorded
        done = "captured" if on_gpu and capture is None else done.replace("compiled", "")
    assert machine.launched("", options=options, **given) == done


@pytest.mark.parametrize(
    ("precision", "multiplies", "warned"),
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False), ("auto", False, False)],
)
def test_a_half_precision_that_is_slower_is_said_to_be(
    monkeypatch, tmp_path, precision, multiplies, warned
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    log = tmp_path / "log"
    with Reporter.silent(log) as reporter:
        machine.warn_if_emulated(precision, torch.device("cpu"), reporter)
    assert ("warning: this machine emulates bfloat16" in log.read_text()) is warned


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_computes_in_float32_and_the_same_twice(monkeypatch, name):
    """Which cuDNN does not by itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert machine.pick_device(name).type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
