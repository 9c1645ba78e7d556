"""AutoAttack's standard ensemble, as `evaluate --autoattack` runs it."""

from __future__ import annotations

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation.adversaries import apgd_adversary, targeted_apgd
from funcrobust.core.evaluation.adversary import Adversary
from funcrobust.core.evaluation.fab import targeted_fab
from funcrobust.core.evaluation.square import square

STANDARD = ("APGD-CE", "APGD-T", "FAB-T", "Square")
"""The attacks, in their order."""

LEAST_CLASSES = 4
"""Of which the targeted ratio needs so many."""


def autoattack(
    ball: Ball, *, classes: int = 10, last: Adversary | None = None
) -> dict[str, Adversary]:
    """Build the standard ensemble (Croce & Hein 2020, arXiv:2003.01690), for `attack_all`.

    APGD on the cross-entropy, APGD toward the nine likeliest other classes, FAB toward the same,
    and Square with 5000 queries; each on those that withstand the ones before it. ``last`` replaces
    Square: of an L2 ball it must be given, for Square in L2 is not written here
    (``funcrobust.running.l2_square.l2_square(ball)`` wraps its authors' code).

    >>> import funcrobust as fr
    >>> list(autoattack(fr.linf(8 / 255)))
    ['APGD-CE', 'APGD-T', 'FAB-T', 'Square']

    Raises `FuncrobustError` for fewer than four ``classes``, which the targeted ratio needs, or a
    ball that is neither `linf` nor `l2`.
    """
    if classes < LEAST_CLASSES:
        raise FuncrobustError(
            f"AutoAttack's targeted ratio needs {LEAST_CLASSES} classes, and there are {classes}: "
            "give attack_all evaluation.apgd_adversary(ball), targeted_fab(ball) and square(ball)"
        )
    if not isinstance(ball, Linf | L2):
        raise FuncrobustError(f"AutoAttack is for fr.linf(...) or fr.l2(...), not {ball}")
    if last is None:
        if not isinstance(ball, Linf):
            raise FuncrobustError(
                "Square in L2 is not written here: give last=, which "
                "funcrobust.running.l2_square.l2_square(ball) builds of its authors' code"
            )
        last = square(ball)
    found = (apgd_adversary(ball), targeted_apgd(ball, targets=9), targeted_fab(ball, targets=9))
    return dict(zip(STANDARD, (*found, last), strict=True))
