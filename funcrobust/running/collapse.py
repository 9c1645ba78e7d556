"""Whether the robustness of a run has collapsed, told from its records.

Catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994, section 5.4): within an epoch the
network learns to withstand the attack it is trained on, and no longer any other. PGD alone can miss
it, where what was learned is a masked gradient. So a record has three robust accuracies on the same
images: "train_attacked" under the training's own attack, "train_robust" under PGD, and
"train_worst", what of it a second attack of another kind leaves (`running.measuring`). Each rule
looks at training images, on which robustness that is only overfitted rises:

    fall   "train_worst" is lower, by `FALL` or by half, than in an earlier epoch in which the
           network classified no better: clean images, or what it was trained on ("accuracy")
    mask   "train_robust" − "train_worst" has grown by `MASK` since the epoch watched before, and
           "train_worst" has not grown
    apart  "train_attacked" is higher by `FALL` than in an earlier epoch, "train_worst" no higher,
           and the latter a quarter of the former at most: so a training is stopped that never was
           robust, too

A learning rate that is too high, which lowers all accuracies, is no fall. Each difference must
also be `DEVIATIONS` standard deviations of what a difference of two binomial shares of so many
images has by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Figures = dict[str, float]
"""What a record of a run says, by name."""

FALL = 0.15
"""Honest runs fall by less: worst-case accuracy is down by some points while the learning rate is
highest, and back later. Half, because in a large ball there are no 15 points to lose."""
MASK = 0.10
"""Honest networks lose 2 to 5 points to the second attack (docs/recipes.md), epoch after epoch."""
DEVIATIONS = 5.0
"""A run of 200 epochs compares 20 000 pairs. Of simulated honest runs of independent records, which
are noisier than the same images again, at most 2 in 10 000 were stopped within 30 epochs, and 5 in
1000 within 200, with 64 to 1000 images."""


def is_watched(record: Figures) -> bool:
    """Tell whether the record is of an epoch that was attacked; not every one need be."""
    return "train_worst" in record


def collapse(records: Sequence[Figures], examples: int) -> str:
    """Say how robustness collapsed in the last record, or return an empty string.

    ``records`` are a run's, in order, their figures shares of ``examples`` training images. Those
    that are not watched are passed over.
    """
    records = list(filter(is_watched, records))
    if not records:
        return ""
    return _fall(records, examples) or _mask(records, examples) or _apart(records, examples)


def _fall(records: Sequence[Figures], examples: int) -> str:
    last = records[-1]
    no_better = [r for r in records[:-1] if any(r[k] <= last[k] for k in LEARNED if k in r)]
    if not no_better:
        return ""
    best = max(no_better, key=lambda record: record["train_worst"])
    high, low = best["train_worst"], last["train_worst"]
    if not high - low > max(min(FALL, high / 2), _noise(high, low, examples)):
        return ""
    return (
        f"catastrophic overfitting in epoch {last['epoch']}: worst-case accuracy on training "
        f"images fell from {high:.1%} in epoch {best['epoch']} to {low:.1%}, while clean accuracy "
        f"went from {best['train_clean']:.1%} to {last['train_clean']:.1%}"
    )


LEARNED = ("train_clean", "accuracy")


def _mask(records: Sequence[Figures], examples: int) -> str:
    if len(records) < 2:
        return ""
    before, now = (r["train_robust"] - r["train_worst"] for r in records[-2:])
    grown = records[-1]["train_worst"] > records[-2]["train_worst"]
    if grown or not now - before > max(MASK, _noise(before, now, examples)):
        return ""
    last = records[-1]
    return (
        f"masked gradients in epoch {last['epoch']}: PGD leaves {last['train_robust']:.1%} of the "
        f"training images, and a second attack {last['train_worst']:.1%}; they were {before:.1%} "
        f"apart in epoch {records[-2]['epoch']}, and are {now:.1%}"
    )


def _apart(records: Sequence[Figures], examples: int) -> str:
    last = records[-1]
    if "train_attacked" not in last:
        return ""
    high, low = last["train_attacked"], last["train_worst"]
    no_worse = [r for r in records[:-1] if "train_attacked" in r and r["train_worst"] >= low]
    if not no_worse or low > high / 4:
        return ""
    least = min(no_worse, key=lambda record: record["train_attacked"])
    before = least["train_attacked"]
    if not high - before > max(FALL, _noise(high, before, examples)):
        return ""
    return (
        f"catastrophic overfitting in epoch {last['epoch']}: {high:.1%} of the training images "
        f"withstand the attack that is trained on, {before:.1%} in epoch {least['epoch']}, and "
        f"{low:.1%} others, {least['train_worst']:.1%} then"
    )


def _noise(one: float, other: float, examples: int) -> float:
    """What the difference of two shares of ``examples`` images needs to be more than noise."""
    share = (one + other) / 2
    return DEVIATIONS * math.sqrt(2 * share * (1 - share) / examples)
