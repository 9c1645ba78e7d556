"""Of the network: can an attack see what it attacks?"""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.evaluation.checks.case import Case, Check
from funcrobust.core.evaluation.slopes import slope_of, usable
from funcrobust.core.examples import flat
from funcrobust.core.losses import odds_of, spread_of
from funcrobust.core.perturbations.ascent import steepest_ascent

TWICE = "same logits twice"


@torch.no_grad()
def deterministic(case: Case) -> Check:
    """Does the same image give the same logits twice? Else one gradient says little."""
    x = case.x[case.some()]
    first, second = (case.predict(case.params, x).float() for _ in range(2))
    apart = float(_apart(first, second).max() / _spread(first))
    return Check(TWICE, apart <= 1e-3, f"differ by {apart:.1g} spreads", "invalid")


@torch.no_grad()
def alone(case: Case) -> Check:
    """Does an image get the same logits alone as among others (else batch statistics are used)?"""
    x = case.x[case.some()[:16]]
    together = case.predict(case.params, x).float()
    single = torch.cat([case.predict(case.params, one).float() for one in x.split(1)])
    largest = float(_apart(single, together).max() / _spread(together))
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
        return Check("gradients", None, "no image stands as it is", "suspicious")
    slope = flat(_slope(case, case.x[places], case.y[places]))
    bad = ~slope.isfinite().all(1) | (slope == 0).all(1)
    entries = float((slope[~bad] == 0).double().mean()) if not bad.all() else 1.0
    figure = (
        f"{int(bad.sum())} of {len(bad)} are 0, or not finite; {entries:.0%} of their entries are 0"
    )
    return Check("gradients", not bad.any() and entries < 0.5, figure, "suspicious")


def climbs(case: Case) -> Check:
    """Does what is climbed rise from step to step, small steps being taken?"""
    places = case.some(case.outcome.clean)
    if not len(places):
        return Check("the loss rises", None, "no image stands as it is", "suspicious")
    x, y = case.x[places], case.y[places]
    # Eight steps that end within the ball: on its boundary nothing rises any more.
    size = min(case.step_size / 2, getattr(case.ball, "radius", torch.inf) / 8)
    ascent = steepest_ascent(case.ball, step_size=size)
    state, seen = ascent.init(x), []
    for _ in range(9):
        with torch.no_grad():
            odds = odds_of(case.predict(case.params, state["x"]).float(), y)
            seen.append(-odds if case.targeted else odds)
        slope = usable(_slope(case, state["x"], y))
        state = ascent.update(state, seen[-1], slope, x)
    rises = float((torch.stack(seen).diff(dim=0) > 0).double().mean())
    figure = f"in {rises:.0%} of the first steps"
    return Check("the loss rises", rises >= 0.75, figure, "suspicious")


def _slope(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of what is climbed; 0 where the logits hang on nothing."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        odds = odds_of(case.predict(case.params, x).float(), y).sum()
        return slope_of(-odds if case.targeted else odds, x)


def _apart(z: Tensor, other: Tensor) -> Tensor:
    """Return how far logits differ; two that are −∞, of a masked class, do not."""
    return torch.where(z == other, 0.0, (z - other).abs())


def _spread(z: Tensor) -> Tensor:
    return spread_of(z).mean().clamp_min(1e-30)
