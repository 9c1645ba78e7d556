"""Checks on an evaluation: each a question whose answer has a figure, and that can fail.

What a robust accuracy is worth depends on whether the attack could see what it attacks. The checks
are AutoAttack's flags (Croce & Hein 2020, arXiv:2003.01690; Croce et al. 2020, arXiv:2010.09670),
the indicators of attack failure (Pintor et al. 2022, arXiv:2106.09947) and the sanity checks of
Carlini et al. 2019 (arXiv:1902.06705), section 3. Each is a function of a `Case`, on a few of its
examples; `CHECKS` lists them, cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball, bounds_of
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.evaluation.adversaries import sharp_pgd
from funcrobust.core.evaluation.adversary import Adversary, Run, inside
from funcrobust.core.evaluation.climbing import gradient_of
from funcrobust.core.evaluation.ensemble import Outcome, attack_all
from funcrobust.core.evaluation.square import square
from funcrobust.core.examples import flat
from funcrobust.core.losses import odds_of
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.ascent import steepest_ascent

Severity = Literal["invalid", "suspicious", "upper bound"]
"""What an evaluation is at best if the check fails: see `verdict.verdict`."""


class Check(NamedTuple):
    """One check's answer."""

    name: str
    passed: bool | None
    """None: it could not be tried here, and ``figure`` says why."""
    figure: str
    """What was found, in a few words."""
    severity: Severity


@dataclass(frozen=True)
class Case:
    """An evaluation that was run: what was attacked, how, and what came of it."""

    predict: Predict
    params: Params
    x: Tensor
    """Clean images (N, …), floating-point."""
    y: Tensor
    ball: Ball
    outcome: Outcome
    numbers: Tensor
    seed: int = 0
    step_size: float = 2 / 255
    stronger: Adversary | None = None
    """The same attack with more steps and restarts; None: it has none."""
    surrogate: tuple[Predict, Params] | None = None
    """Another network on the same images, whose adversarial images are tried."""
    few: int = 64
    """Examples that a costly check takes."""

    def some(self, which: Tensor | None = None) -> Tensor:
        """Return the places of at most ``few`` examples, or of those of them in ``which``."""
        places = torch.arange(len(self.y), device=self.y.device)
        return (places if which is None else places[which])[: self.few]

    def attacked(
        self, adversary: Adversary, places: Tensor, *, predict: Predict | None = None,
        params: Params | None = None,
    ) -> Outcome:  # fmt: skip
        """Run another adversary on the examples at ``places``."""
        return attack_all(
            predict or self.predict, params or self.params, self.x[places], self.y[places],
            {"check": adversary}, numbers=self.numbers[places], seed=self.seed,
        )  # fmt: skip

    @property
    def steps(self) -> Adversary:
        """Twenty plain steps on the log-odds: what a check means by an attack."""
        return sharp_pgd(self.ball, step_size=self.step_size, sharpness=(20.0,))


def share(which: Tensor) -> float:
    """Return the mean of booleans, as a float."""
    return float(which.double().mean())


def range_of_images(case: Case) -> Check:
    """Are the images inside the data's bounds (else the ball is not in their units)?"""
    least, greatest = float(case.x.min()), float(case.x.max())
    bounds = bounds_of(case.ball) or (0.0, 1.0)
    passed = bounds[0] - 1e-6 <= least and greatest <= bounds[1] + 1e-6
    return Check("images in range", passed, f"[{least:.3g}, {greatest:.3g}]", "invalid")


@torch.no_grad()
def deterministic(case: Case) -> Check:
    """Does the same image give the same logits twice? Else one gradient says little."""
    x = case.x[case.some()]
    first, second = (case.predict(case.params, x).float() for _ in range(2))
    apart = float((first - second).abs().max() / _spread(first))
    return Check("same logits twice", apart <= 1e-3, f"differ by {apart:.1g} spreads", "invalid")


@torch.no_grad()
def alone(case: Case) -> Check:
    """Does an image get the same logits alone as among others (else batch statistics are used)?"""
    x = case.x[case.some()[:16]]
    together = case.predict(case.params, x).float()
    apart = torch.cat([case.predict(case.params, one).float() for one in x.split(1)]) - together
    largest = float(apart.abs().max() / _spread(together))
    figure = f"differ by {largest:.1g} spreads"
    return Check("same logits in any batch", largest <= 5e-2, figure, "invalid")


@torch.no_grad()
def logits(case: Case) -> Check:
    """Are the outputs logits (and not probabilities, which flatten every slope)?"""
    z = case.predict(case.params, case.x[case.some()]).float()
    sums = (z.sum(-1) - 1).abs().max()
    probabilities = bool((z >= -1e-4).all() and (z <= 1 + 1e-4).all() and sums < 1e-3)
    figure = "sum to one" if probabilities else f"spread {float(_spread(z)):.3g}"
    return Check("outputs are logits", not probabilities, figure, "suspicious")


def gradients(case: Case) -> Check:
    """Has every image a gradient: finite, and not 0?"""
    places = case.some(case.outcome.clean)
    if not len(places):
        return Check("gradients", None, "no image is classified right", "suspicious")
    slope = _slope(case, case.x[places], case.y[places])
    sizes = flat(slope).abs().amax(1)
    bad = ~sizes.isfinite() | (sizes == 0)
    entries = share(flat(slope)[~bad] == 0) if not bad.all() else 1.0
    figure = f"{int(bad.sum())} of {len(bad)} are 0 or NaN; {entries:.0%} of their entries are 0"
    return Check("gradients", not bad.any() and entries < 0.5, figure, "suspicious")


def climbs(case: Case) -> Check:
    """Does the loss rise from step to step, small steps being taken?"""
    places = case.some(case.outcome.clean)
    if not len(places):
        return Check("the loss rises", None, "no image is classified right", "suspicious")
    x, y = case.x[places], case.y[places]
    ascent = steepest_ascent(case.ball, step_size=case.step_size / 2)
    state, seen = ascent.init(x), []
    for _ in range(9):
        with torch.no_grad():
            seen.append(odds_of(case.predict(case.params, state["x"]).float(), y))
        slope = _slope(case, state["x"], y)
        state = ascent.update(state, seen[-1], slope, x)
    rises = share(torch.stack(seen).diff(dim=0) > 0)
    figure = f"in {rises:.0%} of the first steps"
    return Check("the loss rises", rises >= 0.75, figure, "suspicious")


def nothing(case: Case) -> Check:
    """Does radius 0 give the clean accuracy?"""
    still = _with_radius(case.ball, 0.0)
    if still is None:
        return Check("radius 0 is clean", None, f"{case.ball} has no radius", "invalid")
    places = case.some()
    found = case.attacked(sharp_pgd(still, step_size=0.01, steps=3, sharpness=(20.0,)), places)
    apart = int((found.robust != case.outcome.clean[places]).sum())
    return Check("radius 0 is clean", apart == 0, f"{apart} of {len(places)} differ", "invalid")


def everything(case: Case) -> Check:
    """Does a radius that reaches anything bring accuracy to nothing?"""
    places = case.some(case.outcome.clean)
    bounds = bounds_of(case.ball) or (0.0, 1.0)
    width = bounds[1] - bounds[0]
    reach = width if isinstance(case.ball, Linf) else width * case.x[0].numel() ** 0.5
    wide = _with_radius(case.ball, reach)
    if wide is None or not len(places):
        return Check("a large radius breaks it", None, f"{case.ball} has no radius", "suspicious")
    attack = sharp_pgd(wide, step_size=reach / 20, steps=40, sharpness=(20.0,))
    left = share(case.attacked(attack, places).robust)
    return Check("a large radius breaks it", left <= 0.02, f"{left:.1%} withstand", "suspicious")


def in_the_ball(case: Case) -> Check:
    """Do the images that fooled the network lie in the ball, measured by its norm?"""
    fooled = case.outcome.fell_to > 0
    if not fooled.any():
        return Check("fooling images in the ball", None, "there are none", "invalid")
    moved = flat((case.outcome.images - case.x)[fooled])
    radius = getattr(case.ball, "radius", None)
    if type(case.ball) is Linf:
        size = moved.abs().amax(1)
    elif type(case.ball) is L2:
        size = moved.square().sum(1).sqrt()
    else:
        lie = inside(case.ball, case.outcome.images[fooled], case.x[fooled])
        return Check(
            "fooling images in the ball", bool(lie.all()), f"{share(lie):.1%} lie in it", "invalid"
        )
    assert radius is not None
    images = case.outcome.images[fooled]
    low, high = bounds_of(case.ball) or (-torch.inf, torch.inf)
    ranged = bool(images.min() >= low - 1e-6) and bool(images.max() <= high + 1e-6)
    largest = float(size.max())
    figure = f"farthest {largest:.6g} of {radius:.6g}" + ("" if ranged else ", outside the bounds")
    passed = largest <= radius * (1 + 1e-4) + 1e-6 and ranged
    return Check("fooling images in the ball", passed, figure, "invalid")


@torch.no_grad()
def fools_again(case: Case) -> Check:
    """Are they misclassified when looked at again, alone and in the order of another batch?"""
    places = (case.outcome.fell_to > 0).nonzero().squeeze(1)[: 4 * case.few].flip(0)
    if not len(places):
        return Check("fooling images fool again", None, "there are none", "invalid")
    images = case.outcome.images[places]
    seen = torch.cat([case.predict(case.params, part).argmax(-1) for part in images.split(7)])
    again = share(seen != case.y[places])
    return Check("fooling images fool again", again >= 0.98, f"{again:.1%} of them", "invalid")


@torch.no_grad()
def in_bytes(case: Case) -> Check:
    """Do they survive being stored in 8 bits a number?"""
    places = (case.outcome.fell_to > 0).nonzero().squeeze(1)[: 4 * case.few]
    if not len(places):
        return Check("fooling images in 8 bits", None, "there are none", "suspicious")
    rounded = (case.outcome.images[places] * 255).round() / 255
    survive = share(case.predict(case.params, rounded).argmax(-1) != case.y[places])
    return Check("fooling images in 8 bits", survive >= 0.8, f"{survive:.1%} survive", "suspicious")


def effort(case: Case) -> Check:
    """Do more steps and more restarts change nothing that chance would not?"""
    if case.stronger is None:
        return Check("more effort, no gain", None, "the attack has no stronger form", "upper bound")
    return _on_the_standing(case, case.stronger, "more effort, no gain", "upper bound", 0.05)


def without_gradients(case: Case) -> Check:
    """Does Square, which sees no gradient, find nothing that the others missed?"""
    name = "Square finds nothing more"
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


CHECKS: dict[str, Callable[[Case], Check]] = {
    check.__name__: check
    for check in (
        range_of_images, deterministic, alone, logits, gradients, in_the_ball, fools_again,
        in_bytes, nothing, climbs, everything, without_gradients, transferred, effort,
    )
}  # fmt: skip


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


def _slope(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the log-odds; 0 where the logits hang on nothing."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return gradient_of(odds_of(case.predict(case.params, x).float(), y).sum(), x)


def _with_radius(ball: Ball, radius: float) -> Ball | None:
    return replace(ball, radius=radius) if isinstance(ball, Linf | L2) else None


def _spread(z: Tensor) -> Tensor:
    return z.std(-1).mean().clamp_min(1e-30)
