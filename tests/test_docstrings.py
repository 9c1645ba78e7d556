"""The docstrings: their examples run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import funcrobust as fr

PACKAGE = Path(fr.__file__).parent
WITH_EXAMPLES = sorted(
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 7


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    """As at a prompt that has imported torch, nn, and funcrobust as fr."""
    module = importlib.import_module(name)
    names = {"fr": fr, "torch": torch, "nn": nn}
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert tried
    assert not failed


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_no_example_is_skipped(name):
    assert "+SKIP" not in inspect.getsource(importlib.import_module(name))
