"""Of the images: are they what they are said to be?"""

from __future__ import annotations

import torch

from funcrobust.core.balls.ball import bounds_of
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.binomial import share
from funcrobust.core.evaluation.adversary import inside
from funcrobust.core.evaluation.checks.case import Case, Check
from funcrobust.core.evaluation.minimum_norm import norm_in


def range_of_images(case: Case) -> Check:
    """Are the images inside the data's bounds (else the ball is not in their units)?"""
    least, greatest = float(case.x.min()), float(case.x.max())
    bounds = bounds_of(case.ball)
    if bounds is None and case.x.ndim != 4:
        said = f"[{least:.3g}, {greatest:.3g}], and the ball has no bounds"
        return Check("images in range", None, said, "invalid")
    bounds = bounds or (0.0, 1.0)  # images are in [0, 1], whatever the ball lets pass
    passed = bounds[0] - 1e-6 <= least and greatest <= bounds[1] + 1e-6
    return Check("images in range", passed, f"[{least:.3g}, {greatest:.3g}]", "invalid")


def in_the_ball(case: Case) -> Check:
    """Do the images that fooled the network lie in the ball, measured by its norm?"""
    fooled = case.outcome.fell_to > 0
    if not fooled.any():
        return Check("fooling images in the ball", None, "there are none", "invalid")
    images, ball = case.outcome.images[fooled], case.ball
    if not isinstance(ball, Linf | L2):
        lie = inside(ball, images, case.x[fooled])
        figure = f"{float(lie.double().mean()):.1%} lie in it"
        return Check("fooling images in the ball", bool(lie.all()), figure, "invalid")
    largest, radius = float(norm_in(ball, images - case.x[fooled]).max()), ball.radius
    low, high = bounds_of(case.ball) or (-torch.inf, torch.inf)
    ranged = bool(images.min() >= low - 1e-6) and bool(images.max() <= high + 1e-6)
    figure = f"farthest {largest:.4g} of {radius:.4g}" + ("" if ranged else ", outside the bounds")
    passed = largest <= radius * (1 + 1e-4) + 1e-6 and ranged
    return Check("fooling images in the ball", passed, figure, "invalid")


@torch.no_grad()
def fools_again(case: Case) -> Check:
    """Are they misclassified when looked at again, alone and in the order of another batch?"""
    places = case.some(case.outcome.fell_to > 0)
    if not len(places):
        return Check("fooling images fool again", None, "there are none", "invalid")
    images = case.outcome.images[places]
    seen = torch.cat([case.predict(case.params, part).argmax(-1) for part in images.split(7)])
    again = int(case.fooled(seen, places).sum())
    figure = f"{again} of {len(places)}"
    return Check("fooling images fool again", again >= 0.98 * len(places), figure, "invalid")


@torch.no_grad()
def in_bytes(case: Case) -> Check:
    """Do at least four in five still fool when rounded to 8 bits, up to sampling error?"""
    places = case.some(case.outcome.fell_to > 0)
    if not len(places):
        return Check("fooling images in 8 bits", None, "there are none", "suspicious")
    rounded = (case.outcome.images[places] * 255).round() / 255
    survive = int(case.fooled(case.predict(case.params, rounded).argmax(-1), places).sum())
    figure = f"{survive} of {len(places)} survive"
    passed = share(survive, len(places)).high >= 0.8
    return Check("fooling images in 8 bits", passed, figure, "suspicious")
