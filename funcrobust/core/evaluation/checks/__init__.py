"""Checks on an evaluation: each a question whose answer has a figure, and that can fail.

What a robust accuracy is worth depends on whether the attack could see what it attacks. The checks
are AutoAttack's flags (Croce & Hein 2020, arXiv:2003.01690; Croce et al. 2020, arXiv:2010.09670),
the indicators of attack failure (Pintor et al. 2022, arXiv:2106.09947) and the sanity checks of
Carlini et al. 2019 (arXiv:1902.06705), section 3. Each is a function of a `Case`, on a few of its
examples; `CHECKS` lists them, cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable

from funcrobust.core.evaluation.adversary import ignore
from funcrobust.core.evaluation.checks.case import Case, Check, Severity
from funcrobust.core.evaluation.checks.effort import (
    effort,
    everything,
    nothing,
    transferred,
    without_gradients,
)
from funcrobust.core.evaluation.checks.images import (
    fools_again,
    in_bytes,
    in_the_ball,
    range_of_images,
)
from funcrobust.core.evaluation.checks.network import (
    TWICE,
    alone,
    climbs,
    deterministic,
    gradients,
    logits,
)

__all__ = ["CHECKS", "TWICE", "Case", "Check", "Severity", "run_checks"]

CHECKS: dict[str, Callable[[Case], Check]] = {
    check.__name__: check
    for check in (
        range_of_images, deterministic, alone, logits, gradients, in_the_ball, fools_again,
        in_bytes, nothing, climbs, everything, without_gradients, transferred, effort,
    )
}  # fmt: skip


def run_checks(case: Case, *, advance: Callable[[int], object] = ignore) -> list[Check]:
    """Run all checks on an evaluation that was run, in the order of `CHECKS`.

    ``advance(1)`` is called after each. What follows from them is `verdict`'s to say.

    >>> from funcrobust.core import evaluation
    >>> model = fr.functionalize(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    >>> x, y, ball = torch.rand(8, 3, 2, 2), torch.arange(8) % 4, fr.linf(8 / 255)
    >>> pgd = evaluation.Pgd(ball, step_size=2 / 255, steps=10)
    >>> outcome = evaluation.attack_all(model.predict, model.params, x, y, {"pgd": pgd})
    >>> case = evaluation.Case(model.predict, model.params, x, y, ball, outcome)
    >>> checks = evaluation.run_checks(case)
    >>> checks[0].name, checks[0].passed
    ('images in range', True)
    >>> evaluation.verdict(checks, not_tried=["autoattack"]).word != "holds"
    True
    """
    found = []
    for check in CHECKS.values():
        found.append(check(case))
        advance(1)
    return found
