"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from problems import ROOT

BLOCK = re.compile(r"```python\n# (funcrobust/\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Copy the package, and add every block where it says: at a file's end, or as a new file."""
    folder = tmp_path_factory.mktemp("contributed")
    shutil.copytree(
        ROOT / "funcrobust", folder / "funcrobust", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        path = folder / name
        before = path.read_text() + "\n\n" if path.exists() else ""
        path.write_text(before + text)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run the copy's command line: a process of its own, since this one has the package loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "funcrobust", *arguments], cwd=folder, text=True,
        capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": str(folder)},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_recipe_is_as_many_places_as_the_table_says():
    places = [name for name, _ in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())]
    assert len(places) == 8, "six recipes, of which two have a public name"
    assert places.count("funcrobust/__init__.pyi") == 2


def test_they_train_draw_and_run(followed):
    """One training has four of them: attack, regulariser, dataset, model."""
    said = run(
        followed, "cure-train", "--preset", "digits", "--dataset", "inverted_digits",
        "--model", "linear", "--attack", "half-fgsm", "--regulariser", "flatness=0.5",
        "--epochs", "1", "--train-examples", "256", "--test-examples", "64",
        "--evaluate-examples", "64", "--robust-examples", "32", "--name", "toy",
    )  # fmt: skip
    assert "flatness" in said
    assert "inverted_digits" in said
    drawn = run(followed, "apply", "sharpening", "runs/toy", "--examples", "10", "--judge", "none")
    assert "sharpening" in drawn
    assert "linear: 490 parameters" in run(followed, "weigh", "linear")


def test_the_help_lists_them(followed):
    assert "half-fgsm" in run(followed, "cure-train", "--help")
    assert "Count the parameters of a network." in run(followed, "--help")
