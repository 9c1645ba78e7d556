"""Fixtures: a small problem, the real data where it matters, one trained classifier for all."""

from __future__ import annotations

import pytest
from problems import Problem, make_problem, run_cli


@pytest.fixture
def problem() -> Problem:
    return make_problem()


@pytest.fixture(scope="session")
def cifar():
    """Real CIFAR-10 from the cache, fetched once if need be."""
    from funcrobust import data

    return data.load("cifar10")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A robust classifier of the digits, made by the command line: its run folder, its output."""
    folder = tmp_path_factory.mktemp("digits")
    done = run_cli(
        "cure-train", "--dataset", "digits", "--test-examples", "200", "--evaluate-examples", "200",
        "--epochs", "12", "--out", str(folder), "--name", "cure",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "cure", done.stdout
