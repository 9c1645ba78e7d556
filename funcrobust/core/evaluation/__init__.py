"""Measuring a classifier: accuracy, clean and under adversaries."""

from funcrobust.core.evaluation.accuracy import correct, mean_of
from funcrobust.core.evaluation.adversaries import (
    Pgd,
    apgd_adversary,
    sharp_pgd,
    targeted_apgd,
)
from funcrobust.core.evaluation.adversary import Adversary, Run, adversary_of, inside
from funcrobust.core.evaluation.autoattack import autoattack
from funcrobust.core.evaluation.checks import CHECKS, Case, Check, run_checks
from funcrobust.core.evaluation.ensemble import (
    Outcome,
    attack_all,
    attack_the_standing,
    look,
    robust,
)
from funcrobust.core.evaluation.fab import targeted_fab
from funcrobust.core.evaluation.minimum_norm import accuracy_at, smallest
from funcrobust.core.evaluation.recalibrating import recalibrated
from funcrobust.core.evaluation.sigma_zero import sigma_zero
from funcrobust.core.evaluation.square import square
from funcrobust.core.evaluation.verdict import Verdict, verdict

__all__ = [
    "CHECKS",
    "Adversary",
    "Case",
    "Check",
    "Outcome",
    "Pgd",
    "Run",
    "Verdict",
    "accuracy_at",
    "adversary_of",
    "apgd_adversary",
    "attack_all",
    "attack_the_standing",
    "autoattack",
    "correct",
    "inside",
    "look",
    "mean_of",
    "recalibrated",
    "robust",
    "run_checks",
    "sharp_pgd",
    "sigma_zero",
    "smallest",
    "square",
    "targeted_apgd",
    "targeted_fab",
    "verdict",
]
