"""AutoAttack's standard ensemble, as `evaluate --autoattack` runs it."""

from __future__ import annotations

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.adversaries import apgd_adversary, targeted_apgd
from funcrobust.core.evaluation.adversary import Adversary
from funcrobust.core.evaluation.fab import targeted_fab
from funcrobust.core.evaluation.square import square

STANDARD = ("APGD-CE", "APGD-T", "FAB-T", "Square")
"""The attacks, in their order."""

LEAST_CLASSES = 4
"""Of which the targeted ratio needs so many."""
OF_FEW = "APGD-T (difference)"
"""What stands for APGD-T where there are fewer."""


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

    The ensemble is defined for four ``classes`` or more, which the targeted ratio needs. Of two or
    three APGD climbs the difference z_t − z_y itself, and is named after it:

    >>> list(autoattack(fr.linf(8 / 255), classes=2))
    ['APGD-CE', 'APGD-T (difference)', 'FAB-T', 'Square']

    Raises `FuncrobustError` for fewer than two ``classes``, or a ball that is neither `linf` nor
    `l2`.
    """
    require_count("classes", classes, minimum=2)
    if not isinstance(ball, Linf | L2):
        raise FuncrobustError(
            f"AutoAttack is for fr.linf(...) or fr.l2(...), not {ball}: of any ball with a radius "
            "evaluation.apgd_adversary(ball) and evaluation.targeted_apgd(ball) are its first two"
        )
    if last is None:
        if not isinstance(ball, Linf):
            raise FuncrobustError(
                "Square in L2 is not written here: give last=, which "
                "funcrobust.running.l2_square.l2_square(ball) builds of its authors' code"
            )
        last = square(ball)
    few = classes < LEAST_CLASSES
    names = [OF_FEW if few and name == "APGD-T" else name for name in STANDARD]
    toward_others = targeted_apgd(ball, targets=9, ratio=not few)
    found = (apgd_adversary(ball), toward_others, targeted_fab(ball, targets=9), last)
    return dict(zip(names, found, strict=True))
