"""The adversaries that climb: PGD as published, PGD sharpened, and AutoAttack's two APGDs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.evaluation.climbing import Aims, Climber, Score
from funcrobust.core.evaluation.targets import likeliest_others
from funcrobust.core.losses import cross_entropy_of, odds_of, spread_of
from funcrobust.core.margins import difference_of, dlr_of, targeted_dlr_of
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.ascent import steepest_ascent
from funcrobust.core.perturbations.auto_pgd import auto_ascent


class Pgd(NamedTuple):
    """PGD of the cross-entropy from ``restarts`` random starts, ``steps`` steps each.

    Madry et al. 2018 (arXiv:1706.06083). It ascends the log-odds, of which the cross-entropy is an
    increasing function: over a ball whose steps are normalised, the same steps, which confidence
    cannot round away. Who runs it gives the seed: ``seed`` is what `evaluation.robust` takes.

    ``step_size`` is in units of the data. When it is run, it raises `FuncrobustError` for a step
    size that is negative or not finite, and for fewer than one step or restart.
    """

    ball: Ball
    step_size: float
    steps: int = 20
    restarts: int = 1
    seed: int = 0
    targeted: bool = False
    """Descend it, toward y."""

    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        """Attack: an `Adversary`."""
        require_count("steps", self.steps, minimum=1)
        require_count("restarts", self.restarts, minimum=1)
        require_finite("step_size", self.step_size)
        climber = Climber(
            self.ball, steepest_ascent(self.ball, step_size=self.step_size), self.steps,
            _toward(lambda logits, y, _: odds_of(logits, y), self.targeted),
            _no_aim(self.restarts), self.targeted,
        )  # fmt: skip
        return climber(predict, params, x, y, run)


SHARPNESS = (20.0, 3.0, 1000.0)
"""See `sharp_pgd`."""


def sharp_pgd(
    ball: Ball, *, step_size: float, steps: int = 20, sharpness: Sequence[float] = SHARPNESS,
    targeted: bool = False,
) -> Climber:  # fmt: skip
    r"""Build PGD of the log-odds of the logits times t, one restart for each of ``sharpness``.

        m_t = log Σ_{j≠y} e^{t·z_j} − t·z_y,        t = sharpness / std_j(z_j)

    with the clean image's own standard deviation over the classes (those of finite logits), so that
    a factor on the logits changes nothing. At t → 0 the gradient goes after all classes at once, at
    t → ∞ after the likeliest other alone: either can be masked, by confidence or by the lack of it.
    ``targeted`` it descends, toward y. ``step_size`` is in units of the data.

    Raises `FuncrobustError` for no sharpness or one that is not positive and finite, a step size
    that is negative or not finite, and fewer than one step.
    """
    if not sharpness or not all(0 < s < math.inf for s in sharpness):
        raise FuncrobustError(f"sharpness must be finite numbers > 0, got {tuple(sharpness)}")
    require_finite("step_size", step_size)
    require_count("steps", steps, minimum=1)

    def aims(logits: Tensor, _y: Tensor) -> Tensor:
        spread = spread_of(logits.float()).clamp_min(1e-30)
        return torch.stack([s / spread for s in sharpness])

    def score(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return odds_of(aim.unsqueeze(-1) * logits, y)

    ascent = steepest_ascent(ball, step_size=step_size)
    return Climber(ball, ascent, steps, _toward(score, targeted), aims, targeted)


def apgd_adversary(
    ball: Ball, *, steps: int = 100, restarts: int = 1, ratio: bool = False, targeted: bool = False
) -> Adversary:
    """Build Auto-PGD of the cross-entropy, or of the difference of logits ``ratio``.

    AutoAttack's APGD-CE and APGD-DLR (Croce & Hein 2020, arXiv:2003.01690), until an image on the
    way is misclassified. ``targeted`` it goes toward y: it descends the cross-entropy, or ascends
    the targeted ratio of y and the class that the clean image is seen as.
    """
    require_count("restarts", restarts, minimum=1)
    score: Score = _dlr if ratio else _toward(_cross_entropy, targeted)
    aims = _no_aim(restarts)
    if ratio and targeted:
        score = lambda logits, y, seen: targeted_dlr_of(logits, seen, y)  # noqa: E731
        aims = lambda logits, _: logits.argmax(-1).repeat(restarts, 1)  # noqa: E731
    return Climber(ball, auto_ascent(ball, steps=steps), steps, score, aims, targeted)


def targeted_apgd(
    ball: Ball, *, steps: int = 100, targets: int = 9, ratio: bool = True
) -> Adversary:
    """Build Auto-PGD of the targeted ratio, toward the ``targets`` likeliest other classes in turn.

    AutoAttack's APGD-T; of a network with fewer other classes, toward all of them. Without
    ``ratio`` it climbs the difference of two logits, z_t − z_y, which fewer than four classes have
    too.
    """
    require_count("targets", targets, minimum=1)

    def aims(logits: Tensor, y: Tensor) -> Tensor:
        return likeliest_others(logits, y, targets).T

    score: Score = targeted_dlr_of if ratio else difference_of
    return Climber(ball, auto_ascent(ball, steps=steps), steps, score, aims)


def _no_aim(restarts: int) -> Aims:
    return lambda logits, _: logits.new_zeros(restarts, len(logits))


def _toward(score: Score, targeted: bool) -> Score:
    return (lambda logits, y, aim: -score(logits, y, aim)) if targeted else score


def _cross_entropy(logits: Tensor, y: Tensor, _aim: Tensor) -> Tensor:
    return cross_entropy_of(logits, y)


def _dlr(logits: Tensor, y: Tensor, _aim: Tensor) -> Tensor:
    return dlr_of(logits, y)
