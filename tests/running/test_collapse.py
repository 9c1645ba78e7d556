"""The watch over a training: a collapse is caught, noise is not."""

from __future__ import annotations

import pytest
import torch

from funcrobust.running.collapse import collapse


def record(epoch, clean, robust, worst, accuracy=None, attacked=None):
    found = {"epoch": epoch, "train_clean": clean, "train_robust": robust, "train_worst": worst}
    more = {"accuracy": accuracy, "train_attacked": attacked}
    return found | {name: value for name, value in more.items() if value is not None}


def run_of(*figures):
    return [record(epoch, *f) for epoch, f in enumerate(figures, start=1)]


CAUGHT = {
    # Wong et al. 2020, figure 2: PGD accuracy to 0 within an epoch, clean accuracy up.
    "fall": run_of((0.60, 0.37, 0.35), (0.63, 0.38, 0.36), (0.72, 0.02, 0.00)),
    "by half in a large ball": run_of((0.30, 0.18, 0.16), (0.40, 0.04, 0.02)),
    "clean accuracy falls too, that of FGSM rises": run_of(
        (0.40, 0.17, 0.16, 0.17), (0.30, 0.01, 0.00, 0.55)
    ),
    "after a fall of everything": run_of(
        (0.60, 0.37, 0.35), (0.50, 0.30, 0.28), (0.55, 0.02, 0.00)
    ),
    # ELLE's seed in arXiv:2604.22853: PGD-50 37.1 %, AutoAttack 3.3 %.
    "only the second attack sees it": run_of((0.60, 0.37, 0.35), (0.63, 0.371, 0.033)),
    "a mask without a fall": run_of((0.60, 0.30, 0.27), (0.63, 0.55, 0.25)),
    # One convolution, FGSM from zero at 16/255 (benchmarks/collapse.py).
    "never robust": run_of(
        (0.352, 0.031, 0.004, 0.010, 0.051), (0.348, 0.090, 0.027, 0.074, 0.168),
        (0.270, 0.008, 0.0, 0.285, 0.664),
    ),
}  # fmt: skip
HONEST = {
    "first epoch": run_of((0.40, 0.0, 0.0)),
    "rising": run_of((0.40, 0.25, 0.23), (0.50, 0.30, 0.27), (0.60, 0.37, 0.33)),
    "too high a rate": run_of((0.60, 0.37, 0.35, 0.37), (0.20, 0.11, 0.10, 0.12)),
    "a mask that was there": run_of((0.60, 0.37, 0.20), (0.63, 0.37, 0.19)),
    "a dip": run_of((0.60, 0.37, 0.35), (0.61, 0.28, 0.25)),
    # digits, FGSM from zero at 0.2: 46.5 % in the end.
    "the attack trained on is learned first": run_of(
        (0.680, 0.0, 0.0, 0.070, 0.039), (0.805, 0.191, 0.055, 0.391, 0.414),
        (0.906, 0.250, 0.137, 0.511, 0.527),
    ),
    "a gap that robustness grows with": run_of((0.60, 0.30, 0.27), (0.63, 0.45, 0.29)),
}  # fmt: skip


@pytest.mark.parametrize("records", CAUGHT.values(), ids=CAUGHT)
def test_a_collapse_is_caught_in_its_epoch(records):
    assert not any(collapse(records[:n], 256) for n in range(1, len(records)))
    assert f"in epoch {len(records)}" in collapse(records, 256)


@pytest.mark.parametrize("records", HONEST.values(), ids=HONEST)
def test_an_honest_record_is_not_stopped(records):
    assert not any(collapse(records[:n], 256) for n in range(1, len(records) + 1))


def test_what_an_older_version_recorded_is_passed_over():
    old = {"epoch": 1, "train_clean": 0.6, "train_robust": 0.4}
    assert collapse([old], 256) == ""
    assert collapse([old, *CAUGHT["fall"]], 256)


def test_few_images_prove_nothing():
    assert collapse(CAUGHT["fall"], 256)
    assert not collapse(CAUGHT["fall"], 16)


def simulated(runs, examples, clean, worst, gap, seed):
    """Records whose every figure is drawn anew: noisier than the same images again.

    30 points more withstand the attack that is trained on.
    """
    draw = torch.Generator().manual_seed(seed)

    def shares(p):
        count = torch.full((runs, len(p)), float(examples), dtype=torch.float64)
        return torch.binomial(count, p.double().expand(runs, -1), draw) / examples

    drawn = [shares(p).tolist() for p in (clean, worst, gap, worst + 0.3)]
    for run in zip(*drawn, strict=True):
        yield run_of(*((c, w + g, w, None, a) for c, w, g, a in zip(*run, strict=True)))


@pytest.mark.parametrize("examples", [64, 256, 1000])
@pytest.mark.parametrize("worst", [(0.12, 0.12), (0.30, 0.30), (0.50, 0.50), (0.20, 0.45)], ids=str)
def test_honest_noise_is_no_collapse(examples, worst):
    """Hundreds of runs of 30 epochs, 0.1 alarms expected in 1000; a flat one is the hardest."""
    clean, robust = torch.linspace(0.6, 0.7, 30), torch.linspace(*worst, 30)
    gap = torch.full((30,), 0.04)
    runs = simulated(300, examples, clean, robust, gap, seed=examples)
    alarms = sum(any(collapse(run[:n], examples) for n in range(1, 31)) for run in runs)
    assert alarms <= 2


@pytest.mark.parametrize(("before", "examples"), [(0.20, 256), (0.30, 256), (0.12, 1000)])
def test_a_collapse_is_seen_through_the_noise(before, examples):
    """Five epochs, and then 1 % is left."""
    worst = torch.tensor([before] * 5 + [0.01])
    clean = torch.linspace(0.5, 0.6, 6)
    runs = list(simulated(1000, examples, clean, worst, torch.full((6,), 0.03), seed=7))
    assert sum(bool(collapse(run, examples)) for run in runs) >= 990
