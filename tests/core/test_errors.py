"""What a missing extra says."""

from __future__ import annotations

import doctest
import re
import tomllib

import pytest
from problems import ROOT

from funcrobust.core import errors
from funcrobust.core.errors import FuncrobustError, extra

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_missing_library_is_one_line_that_says_how_to_get_it():
    with pytest.raises(FuncrobustError) as said, extra("study", "this needs it"):
        import no_library_of_this_name  # noqa: F401
    assert str(said.value) == (
        "this needs it (No module named 'no_library_of_this_name'): "
        'pip install "funcrobust[study]"'
    )
    with pytest.raises(ZeroDivisionError), extra("study", "other errors are not its business"):
        _ = 1 / 0


def test_its_documentation():
    assert doctest.testmod(errors, verbose=False).failed == 0


def test_every_extra_that_is_named_is_one():
    """Of the code, what it says where a library is missing, and of the documents."""
    used = re.compile(r'extra\("([^"]+)"|funcrobust\[([a-z,-]+)\]')
    files = [*(ROOT / "funcrobust").rglob("*.py"), ROOT / "README.md", ROOT / "pyproject.toml"]
    named = {
        name
        for file in files
        for groups in used.findall(file.read_text())
        for name in "".join(groups).split(",")
    }
    assert {"study", "denoising", "corruptions", "minimum-norm", "autoattack"} <= named
    assert named <= set(PROJECT["optional-dependencies"])
