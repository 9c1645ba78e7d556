r"""FAB: an adversary that looks for the nearest image on the other side.

Croce & Hein 2020 (arXiv:1907.02044), algorithm 1, toward a class t: with f = z_t − z_y linearised
at x_i, the hyperplane π_i = {z : f(x_i) + ⟨∇f(x_i), z − x_i⟩ = 0}, and the ways d₁ from x_i and d₂
from the clean image x_0 to π_i inside the data's bounds,

    x_{i+1} = Π( (1 − α)·(x_i + η·d₁) + α·(x_0 + η·d₂) ),   α = min( ‖d₁‖/(‖d₁‖ + ‖d₂‖), α_max )
    x_{i+1} ← x_0 + β·(x_{i+1} − x_0)   where x_{i+1} is misclassified

It climbs no loss, and no radius holds it: where the image that it finds lies in the ball, the
example has fallen. Without random starts, as AutoAttack runs it, nothing in it is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.balls.ball import bounds_of
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.evaluation.minimum_norm import norm_in
from funcrobust.core.evaluation.slopes import slope_of
from funcrobust.core.evaluation.targets import likeliest_others
from funcrobust.core.examples import flat, per_example
from funcrobust.core.margins import difference_of
from funcrobust.core.network.functional import Params, Predict

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
"""The paper's, and AutoAttack's."""


def targeted_fab(ball: Linf | L2, *, targets: int = 9, steps: int = 100) -> Adversary:
    """Build FAB toward each of the ``targets`` likeliest other classes, ``steps`` steps each.

    AutoAttack's FAB-T. Raises `FuncrobustError` for a ball that is neither `linf` nor `l2` of a
    finite radius, or without data bounds.
    """
    if type(ball) not in (Linf, L2) or not math.isfinite(ball.radius) or bounds_of(ball) is None:
        raise FuncrobustError(
            f"FAB is for fr.linf(...) or fr.l2(...) with a finite radius and bounds, not {ball}"
        )
    require_count("targets", targets, minimum=1)
    require_count("steps", steps, minimum=1)
    return _Fab(ball, targets, steps)


@dataclass(frozen=True)
class _Fab:
    ball: Linf | L2
    targets: int
    steps: int

    @torch.no_grad()
    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            if len(rows):
                found[rows] = self._batch(predict, params, x[rows], y[rows], run)
        return found

    def _batch(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        aims = likeliest_others(predict(params, x), y, self.targets)
        found, standing, told = x.clone(), torch.arange(len(x), device=x.device), 0
        for done, aim in enumerate(aims.T, start=1):
            here, center = x[standing], x[standing]
            rows, target = standing, aim[standing]
            for _ in range(self.steps):
                here = self._step(predict, params, here, center, y[rows], target)
                wrong = predict(params, here).argmax(-1) != y[rows]
                near = wrong & (self._size(here - center) <= self.ball.radius)
                found[rows[near]] = here[near]
                here[wrong] = torch.lerp(center[wrong], here[wrong], BETA)
                if near.any():
                    on = ~near
                    rows, target, here, center = rows[on], target[on], here[on], center[on]
                    if not len(rows):
                        break
            standing = rows
            now = len(x) - len(standing) * (len(aims.T) - done) // len(aims.T)
            run.advance(now - told)
            told = now
            if not len(standing):
                break
        return found

    def _step(
        self, predict: Predict, params: Params, x: Tensor, center: Tensor, y: Tensor, target: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            f = difference_of(predict(params, at), y, target)
            w = slope_of(f.sum(), at)
        # An infinite slope would put the plane at x itself, where no step leads anywhere.
        w = w.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        both, normals = torch.cat([x, center]), torch.cat([w, w])
        # ⟨w, z⟩ = ⟨w, x⟩ − f(x) on the plane; how far each of the two is from it:
        gap = torch.cat([f, f + flat(w * (center - x)).sum(1)])
        low, high = self._bounds
        d1, d2 = to_plane(both, normals, gap, low, high, straight=type(self.ball) is L2).chunk(2)
        a1, a2 = (self._size(d).clamp_min(1e-8) for d in (d1, d2))
        alpha = per_example((a1 / (a1 + a2)).clamp_max(ALPHA_MAX), x)
        return ((x + ETA * d1) * (1 - alpha) + (center + ETA * d2) * alpha).clamp(low, high)

    @property
    def _bounds(self) -> tuple[float, float]:
        bounds = bounds_of(self.ball)
        assert bounds is not None
        return bounds

    def _size(self, moved: Tensor) -> Tensor:
        return norm_in(self.ball, moved)


def to_plane(
    x: Tensor, w: Tensor, gap: Tensor, low: float, high: float, *, straight: bool
) -> Tensor:
    """Return the shortest d (B, …) with ⟨w, x + d⟩ = ⟨w, x⟩ − ``gap`` and x + d in the bounds.

    Shortest in the L2 norm if ``straight``, else in L∞. Where no such d is, all of x goes as far as
    the bounds let it. With s = −sign(gap), the room r_i from x_i to its bound in direction s·w_i,
    and v_i = |w_i| (L2) or 1 (L∞), d_i = s·sign(w_i)·v_i·min(λ, u_i), u_i = r_i/v_i, where λ solves

        φ(λ) = Σ |w_i|·v_i·min(λ, u_i) = |gap|.

    φ is increasing, concave and piecewise linear, of slope Σ |w_i|·v_i over those with u_i > λ, so
    Newton's method from below never passes the root and ends at it after finitely many pieces:
    some five, and no sorting.
    """
    weight = flat(w.abs())
    way = flat(w.sign()) * -gap.sign().unsqueeze(1)
    room = torch.maximum(way * (high - flat(x)), way * (low - flat(x)))
    room = room.nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0)  # 0·inf: it never moves
    steep = weight.square() if straight else weight
    until = (room / weight).nan_to_num(nan=0.0) if straight else room  # 0/0: it never moves
    goal, lam = gap.abs(), torch.zeros_like(gap)
    for _ in range(PIECES):
        at = lam.unsqueeze(1)
        free = (until - at).sign().clamp_min(0)  # a mask of numbers: torch.where is slow on a CPU
        slope = (steep * free).sum(1)
        short = goal - (steep * torch.minimum(at, until)).sum(1)
        step = torch.where(slope > 0, short.clamp_min(0) / slope.clamp_min(1e-30), torch.inf)
        step = torch.where((slope <= 0) & (short <= 0), 0.0, step)
        moved = lam + step
        done = (moved <= lam * (1 + 4 * torch.finfo(lam.dtype).eps)) | moved.isinf()
        lam = moved
        if done.all():
            break
    reach = torch.minimum(lam.unsqueeze(1), until)
    return (way * (reach * weight if straight else reach)).reshape(x.shape)


PIECES = 60
"""At most so many pieces of φ; a rounding of the last is let pass."""
