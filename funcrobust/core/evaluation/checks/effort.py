"""Of the effort: would another attack, another radius or more of the same find more?"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from funcrobust.core.balls.ball import Ball, bounds_of
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.evaluation.adversaries import sharp_pgd
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.evaluation.checks.case import Case, Check, Severity
from funcrobust.core.evaluation.square import square
from funcrobust.core.network.functional import Params, Predict


def nothing(case: Case) -> Check:
    """Does radius 0 give the clean accuracy?"""
    still = _with_radius(case.ball, 0.0)
    if still is None:
        return Check("radius 0 is clean", None, f"{case.ball} has no radius", "invalid")
    places = case.some()
    attack = sharp_pgd(still, step_size=0.01, steps=3, sharpness=(20.0,), targeted=case.targeted)
    found = case.attacked(attack, places)
    apart = int((found.robust != case.outcome.clean[places]).sum())
    return Check("radius 0 is clean", apart == 0, f"{apart} of {len(places)} differ", "invalid")


def everything(case: Case) -> Check:
    """Does a radius that reaches anything bring accuracy to nothing?"""
    name = "a large radius breaks it"
    places = case.some(case.outcome.clean)
    low, high = bounds_of(case.ball) or (-math.inf, math.inf)
    width = high - low
    if math.isinf(width):
        return Check(name, None, "no radius reaches all of unbounded data", "suspicious")
    reach = width if isinstance(case.ball, Linf) else width * case.x[0].numel() ** 0.5
    wide = _with_radius(case.ball, reach)
    if wide is None or not len(places):
        return Check(name, None, f"{case.ball} has no radius", "suspicious")
    attack = sharp_pgd(
        wide, step_size=reach / 20, steps=40, sharpness=(20.0,), targeted=case.targeted
    )
    left = float(case.attacked(attack, places).robust.double().mean())
    return Check(name, left <= 0.02, f"{left:.1%} withstand", "suspicious")


def effort(case: Case) -> Check:
    """Does the case's stronger attack find no more than chance would?"""
    name = "more effort, no gain"
    if case.stronger is None:
        return Check(name, None, "no stronger attack was given", "upper bound")
    return _on_the_standing(case, case.stronger, name, "upper bound", 0.05)


def without_gradients(case: Case) -> Check:
    """Does Square, which sees no gradient, find nothing that the others missed?"""
    name = "Square finds nothing more"
    if case.targeted:
        return Check(name, None, "it goes after no target", "suspicious")
    if type(case.ball) is not Linf or case.x.ndim != 4:
        return Check(name, None, "for images in an L-infinity ball alone", "suspicious")
    return _on_the_standing(case, square(case.ball, queries=200), name, "suspicious", 0.03)


def transferred(case: Case) -> Check:
    """Do another network's adversarial images find nothing that the others missed?"""
    name = "no transfer finds more"
    if case.surrogate is None:
        return Check(name, None, "no other network knows these images", "suspicious")
    other, its_params = case.surrogate
    base = case.steps

    def from_other(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        del predict, params  # the one attacked
        return base(other, its_params, x, y, run)

    return _on_the_standing(case, from_other, name, "suspicious", 0.03)


def _on_the_standing(
    case: Case, adversary: Adversary, name: str, severity: Severity, tolerance: float
) -> Check:
    """Attack some of those that withstood; few may fall, of whom one is chance."""
    places = case.some(case.outcome.robust)
    if not len(places):
        return Check(name, None, "nobody withstands", severity)
    fell = int((~case.attacked(adversary, places).robust).sum())
    figure = f"{fell} of {len(places)} more fall"
    return Check(name, fell <= max(1, tolerance * len(places)), figure, severity)


def _with_radius(ball: Ball, radius: float) -> Ball | None:
    return replace(ball, radius=radius) if isinstance(ball, Linf | L2) else None
