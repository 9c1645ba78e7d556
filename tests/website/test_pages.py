"""The site's pages: nothing public is left out, and what they name is there."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pkgutil import iter_modules

import docstrings
import pytest
import torch
from problems import ROOT, parsed

import funcrobust as fr
from funcrobust import commands, judging
from funcrobust.core import evaluation
from funcrobust.core.evaluation.checks import CHECKS, Case
from funcrobust.core.evaluation.verdict import ORDER

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [page.relative_to(DOCS).as_posix() for page in PAGES]
SUBMODULES = ("checkpoints", "core.evaluation", "data", "models")
COMMANDS = {name.replace("_", "-") for _, name, _ in iter_modules(commands.__path__)}
LINE = re.compile(r"^    (?:funcrobust|python cli\.py) (.+)$", re.MULTILINE)
COMMAND = re.compile(r"`(?:python cli\.py |funcrobust )?((?:[a-z]+-)?[a-z]+ [^`\n]*)`")


def defined_in(module) -> set[str]:
    """Public functions, classes and constants of a module without an ``__all__``."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, int) or getattr(value, "__module__", "") == module.__name__)
    }


def test_every_public_name_is_in_the_reference():
    listed = docstrings.listed()
    assert len(listed) == len(set(listed))
    missing = set(fr.__all__) - set(listed)
    for module in SUBMODULES:
        public = importlib.import_module(f"funcrobust.{module}").__all__
        missing |= {f"{module}.{name}" for name in public} - set(listed)
    missing |= {f"judging.{name}" for name in defined_in(judging)} - set(listed)
    assert not missing, f"add a line '::: funcrobust.NAME' to a page of docs/reference: {missing}"


@pytest.mark.parametrize("name", docstrings.listed())
def test_what_the_reference_lists_is_there_and_says_what_it_is(name):
    module, _, last = name.rpartition(".")
    holder = importlib.import_module(f"funcrobust.{module}".rstrip("."))
    value = getattr(holder, last)
    if callable(value) and getattr(value, "__module__", "").startswith("funcrobust"):
        said = (value.__doc__ or "").strip()
        assert said
        assert not said.startswith(f"{value.__name__}("), "what Python says of a class without one"


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [name for value in values for name in files(value)]

    navigation = files(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(navigation) == sorted(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_names_a_page_uses_are_public(page):
    used = set(re.findall(r"\bfr\.([A-Za-z_]\w*)", page.read_text()))
    assert used <= set(fr.__all__)


def test_every_check_of_an_evaluation_is_explained():
    x, y = torch.rand(2, 12), torch.tensor([0, 1])
    outcome = evaluation.Outcome(torch.tensor([-1, -1]), x, y)
    case = Case(lambda w, x: x @ w["w"], {"w": torch.rand(12, 4)}, x, y, fr.linf(0.1), outcome, y)
    names = {check(case).name for check in CHECKS.values()}
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "choose" / "verdict.md").read_text(), re.MULTILINE)
    assert names | {f"*{word}*" for word in ORDER} <= set(rows)


def test_every_extra_for_users_is_on_the_first_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    page = (DOCS / "index.md").read_text()
    named = {
        n
        for row in re.findall(r"^\| (`[^|]+) \|", page, re.M)
        for n in row.replace("`", "").split(", ")
    }
    assert named == extras - {"test", "docs", "release", "oracles", "notebook"}


def test_every_command_has_its_place():
    text = (DOCS / "commands.md").read_text()
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == COMMANDS | {"Figures as JSON"}
    assert set(re.findall(r"^\$ python -m funcrobust (.+) --help$", text, re.MULTILINE)) == COMMANDS


READY = {"RUN": "cifar10-linf-tiny", "runs/FOLDER": "cifar10-linf-tiny", "TASK": "generation"}
READY |= {"drawing.png": str(DOCS / "sketch.png")}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_commands_of_a_page_can_be_said(page, tmp_path, monkeypatch):
    """RUN and FILE stand for what a reader has; three dots for what he may add."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    for said in (*COMMAND.findall(text), *LINE.findall(text)):
        words = shlex.split(said, comments=True)
        if words[0] in COMMANDS and not {"--help", "--resume", "..."} & set(words):
            ready = [READY.get(word, word) for word in words]
            parsed(*ready)
