"""Fixtures: a small problem, the real data where it matters, one trained classifier for all.

No test may depend on the order of the tests nor on torch's global random numbers. Each finds them
freshly seeded: with 0, or with the seed of a shuffled order (``-p randomly``, see the Makefile).
"""

from __future__ import annotations

import os
import signal

import pytest
import torch
from filelock import FileLock
from problems import Problem, make_problem, run_cli

from funcrobust.report.console import Reporter

# A shell starts what is in its background with Ctrl-C ignored, nohup with a hang-up, and a training
# would inherit that.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )


@pytest.fixture(autouse=True)
def _seeded(request):
    torch.manual_seed(request.config.getoption("randomly_seed", 0))


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
    """A robust classifier of the digits, made by the command line: its run folder, its output.

    The workers of pytest-xdist, whose folders lie side by side, share it.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "digits"
    said = folder / "said.txt"
    with FileLock(f"{folder}.lock"):
        if not said.exists():
            done = run_cli(
                "cure-train", "--dataset", "digits", "--test-examples", "200",
                "--evaluate-examples", "200", "--epochs", "6", "--out", str(folder),
                "--name", "cure",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    return folder / "cure", said.read_text()


@pytest.fixture
def tracks(monkeypatch):
    """What has a bar: descriptions and totals, as they come."""
    found, usual = [], Reporter.track

    def seen(self, description, total, *more, **named):
        found.append((description, total))
        return usual(self, description, total, *more, **named)

    monkeypatch.setattr(Reporter, "track", seen)
    return found
