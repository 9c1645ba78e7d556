"""Every option of every command, told what it cannot use: exit code 2, one line, nothing begun."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from funcrobust import cli, commands
from funcrobust.running.option import options_of

COMMANDS = sorted(p.stem for p in Path(commands.__path__[0]).iterdir() if p.stem[0] != "_")


def class_of(command):
    return getattr(
        import_module(f"funcrobust.commands.{command}"), command.title().replace("_", "")
    )


NUMBERS = ("nan", "inf", "-inf", "1e400", "9" * 5000, "x", "1/0", "1e308/1e-308", "--", "")
WHOLE = (*NUMBERS, "1.5", "99999999999999999999", "-99999999999999999999")
ABSENT = "absent/nowhere"


def unusable(option):
    """What an option of this kind can never use."""
    if option.kind in (int, float):
        values = list(WHOLE if option.kind is int else NUMBERS)
        bounds = dict((sign, bound) for sign, _, bound in option._bounds())  # noqa: C402
        values += ["-1", "-7"] if {">=", ">"} & bounds.keys() else []
        values += ["0"] if bounds.get(">") == 0 or bounds.get(">=", 0) >= 1 else []
        values += [str(bounds["<="] * 2 + 1)] if "<=" in bounds else []
        values += [str(bounds["<"])] if "<" in bounds else []
    elif option.kind is bool:
        return []
    else:
        values = ["", "a\0b"]
        values += ["no such name"] if option.choices else []
    if option.several is dict:
        names = option.choices or ("a",)
        return [*(f"{names[0]}={v}" for v in values), "no such name=1", "=1", "1", ""]
    return values


CASES = [
    (command, name)
    for command in COMMANDS
    for name, option in options_of(class_of(command)).items()
    if option.kind is not bool
]


BUILD = cli.program
PROGRAM = cache(lambda command: BUILD([command]))  # which takes a tenth of a second


def said(monkeypatch, command, words):
    """What the command line says; a command that begins has not refused."""
    module = import_module(f"funcrobust.commands.{command}")

    def begun(options, reporter):
        raise AssertionError(f"{command} {words} began")

    monkeypatch.setattr(module, "run", begun)
    monkeypatch.setattr(cli, "program", lambda words: PROGRAM(words[0]))
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main([command.replace("_", "-"), *words])
    return stop.value.code, err.getvalue()


def words_for(command, option, value):
    """The words that give one option a value, beside what a command cannot do without."""
    needed = {
        o.name: {"task": "generation", "checkpoint": "cifar10-linf-tiny", "file": "x.pt"}[o.name]
        for o in options_of(class_of(command)).values()
        if o.positional and not o.optional and o.several is None and o.name != "name"
    }
    if option.positional:
        return [*(value if n == option.name else v for n, v in needed.items()),
                *([value] if option.name not in needed else [])]  # fmt: skip
    beside = ["one", "two"] if command == "runs" else []  # what its page is about
    return [*needed.values(), *beside, option.flag, value]


def require_refused(found, what):
    code, text = found
    assert code == 2, what
    assert text.startswith("error: "), what
    assert text.count("\n") == 1, what
    assert "Traceback" not in text, what
    assert len(text) < 4500, what


@pytest.mark.parametrize(("command", "name"), CASES)
def test_what_an_option_cannot_use(monkeypatch, command, name):
    option = options_of(class_of(command))[name]
    for value in unusable(option):
        require_refused(
            said(monkeypatch, command, words_for(command, option, value)), (name, value)
        )


READ = ("data_dir", "dataset", "checkpoint", "checkpoints", "image", "resume")
WRITTEN = ("json_file", "png", "page", "save", "out")
TO_WRITE = [case for case in CASES if case[1] in WRITTEN and case != ("runs", "out")]


@pytest.mark.parametrize(("command", "name"), [c for c in CASES if c[1] in READ])
def test_what_is_not_there(monkeypatch, tmp_path, command, name):
    monkeypatch.chdir(tmp_path)
    option = options_of(class_of(command))[name]
    found = said(monkeypatch, command, words_for(command, option, ABSENT))
    require_refused(found, name)
    assert ABSENT in found[1]


@pytest.mark.parametrize(("command", "name"), TO_WRITE)
def test_what_cannot_be_written(monkeypatch, tmp_path, command, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    option = options_of(class_of(command))[name]
    suffix = {"png": ".png", "page": ".html", "save": ".safetensors"}.get(name, "")
    words = words_for(command, option, f"file/it{suffix}")
    found = said(monkeypatch, command, words)
    require_refused(found, name)
    assert "cannot write" in found[1]
    (tmp_path / f"folder{suffix}").mkdir()
    if name != "out":
        words = words_for(command, option, f"folder{suffix}")
        require_refused(said(monkeypatch, command, words), name)


def test_auto_is_a_word_for_pages_alone(monkeypatch, tmp_path):
    """Elsewhere it is a file of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto").mkdir()
    for command in {c for c, name in TO_WRITE if name == "json_file"}:
        words = words_for(command, options_of(class_of(command))["json_file"], "auto")
        require_refused(said(monkeypatch, command, words), command)
    with pytest.raises(AssertionError, match="began"):
        said(monkeypatch, "evaluate", ["--page", "auto"])


def test_a_run_is_named_by_one_plain_word(monkeypatch):
    for command in ("cure_train", "psi_train"):
        for name in ("..", ".", "a/b", "/a", "a\x1b[2J", "x" * 300):
            require_refused(said(monkeypatch, command, ["--name", name]), name)


def test_the_harness_sees_a_command_that_begins(monkeypatch):
    """Else the tests above could not fail."""
    with pytest.raises(AssertionError, match="began"):
        said(monkeypatch, "demo", ["--seed", "1"])
