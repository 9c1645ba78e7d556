"""A verdict on an evaluation: a word, and what it hangs on.

invalid       the figure means nothing: a check says that what was measured is something else
suspicious    the attack may not have seen what it attacked: robust accuracy may be far lower
upper bound   a stronger attack is known, and was not run or finds more
holds         AutoAttack, or as strong an ensemble, was run, and every check passes
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from funcrobust.core.evaluation.checks import Check

Word = Literal["invalid", "suspicious", "upper bound", "holds"]
ORDER: tuple[Word, ...] = ("invalid", "suspicious", "upper bound", "holds")


class Verdict(NamedTuple):
    """See the head of this file."""

    word: Word
    because: tuple[str, ...]
    """The failed checks that decide, or what was not tried."""


def verdict(checks: Iterable[Check], not_tried: Iterable[str]) -> Verdict:
    """Judge: the worst of the failed checks, or an upper bound where attacks were not tried.

    ``not_tried`` are the names of stronger attacks that were not run: none where `autoattack` was.
    """
    failed = [check for check in checks if check.passed is False]
    for word in ORDER[:3]:
        because = [f"{check.name}: {check.figure}" for check in failed if check.severity == word]
        if word == "upper bound":
            because += [f"not tried: {name}" for name in not_tried]
        if because:
            return Verdict(word, tuple(because))
    return Verdict("holds", ())
