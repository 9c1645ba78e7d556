"""Learning-rate schedules of the fast-adversarial-training code family, as pure functions.

A schedule maps the number of updates done, an int or a 0-dim tensor (torchopt passes tensors), to
a 0-dim float64 tensor. Below, t = step / total_steps in [0, 1] (the published code mostly evaluates
one step ahead, and rounds its corners to whole epochs). ``lr_min`` is a floor: with the default 0
every formula is the published one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_count, require_finite, unknown_name

Schedule = Callable[[float | Tensor], Tensor]


def piecewise(t: Tensor, lr_max: float) -> Tensor:
    """lr_max, a tenth of it from t = 1/2, a hundredth from t = 3/4."""
    return lr_max * _stairs(t, (0.5, 0.75), (1, 0.1, 0.01))


def linear(t: Tensor, lr_max: float) -> Tensor:
    """Lines through (0, lr_max), (1/3, lr_max), (2/3, lr_max/10), (1, lr_max/100)."""
    return lr_max * _lines(t, (0, 1 / 3, 2 / 3, 1), (1, 1, 0.1, 0.01))


def cyclic(t: Tensor, lr_max: float) -> Tensor:
    """Up in a line over the first half, down over the second (Smith 2017, arXiv:1506.01186)."""
    return lr_max * _lines(t, (0, 0.5, 1), (0, 1, 0))


def superconverge(t: Tensor, lr_max: float) -> Tensor:
    """Up over the first 2/5, down to zero after (Smith & Topin 2018, arXiv:1708.07120)."""
    return lr_max * _lines(t, (0, 0.4, 1), (0, 1, 0))


def cosine(t: Tensor, lr_max: float) -> Tensor:
    """lr_max · (1 + cos πt)/2 (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return lr_max * 0.5 * (1 + torch.cos(math.pi * t))


def onedrop(t: Tensor, lr_max: float) -> Tensor:
    """lr_max, then a tenth of it from t = 1/2."""
    return lr_max * _stairs(t, (0.5,), (1, 0.1))


def multipledecay(t: Tensor, lr_max: float) -> Tensor:
    """Ten equal stairs down from lr_max: lr_max · (1 − ⌊10t⌋/10)."""
    # 10t is exact only up to rounding: 0.3 · 10 must count as the third stair, not the second.
    return lr_max * (1 - torch.floor(10 * t + 1e-9) / 10)


def constant(t: Tensor, lr_max: float) -> Tensor:
    """lr_max throughout."""
    return lr_max * torch.ones_like(t)


SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    shape.__name__: shape
    for shape in (
        piecewise, linear, cyclic, cosine, onedrop, multipledecay, superconverge, constant,
    )
}  # fmt: skip


def schedule(name: str, *, lr_max: float, lr_min: float = 0.0, total_steps: int) -> Schedule:
    """Build the named schedule over ``total_steps`` updates.

    ``name`` is constant, cosine, cyclic, linear, multipledecay, onedrop, piecewise or
    superconverge; any other function of the step will do for `optimizer` just as well. cyclic
    starts at ``lr_min`` and returns to it, the others never fall below it.

    Raises `FuncrobustError` for an unknown name, rates that are negative or not finite, an
    ``lr_min`` above ``lr_max``, and fewer than one step.

    >>> lr = schedule("cyclic", lr_max=0.2, total_steps=100)
    >>> float(lr(0)), float(lr(25)), float(lr(50))
    (0.0, 0.1, 0.2)
    """
    require_finite("lr_max", lr_max)
    require_finite("lr_min", lr_min)
    require_count("total_steps", total_steps, minimum=1)
    if lr_min > lr_max:
        raise FuncrobustError(f"lr_min ({lr_min}) must not exceed lr_max ({lr_max})")
    if name not in SHAPES:
        raise unknown_name("schedule", name, SHAPES)
    shape = SHAPES[name]

    def rate(step: float | Tensor) -> Tensor:
        t = (torch.as_tensor(step, dtype=torch.float64) / total_steps).clamp(0, 1)
        if name == "cyclic":
            return lr_min + shape(t, lr_max - lr_min)
        return shape(t, lr_max).clamp_min(lr_min)

    return rate


def _stairs(t: Tensor, edges: tuple[float, ...], levels: tuple[float, ...]) -> Tensor:
    """Piecewise constant: levels[i] from edges[i − 1] on."""
    y = torch.full_like(t, levels[0])
    for edge, level in zip(edges, levels[1:], strict=True):
        y = torch.where(t < edge, y, level)
    return y


def _lines(t: Tensor, xs: tuple[float, ...], ys: tuple[float, ...]) -> Tensor:
    """Piecewise linear interpolation that traces under torch.compile (numpy.interp does not)."""
    y = torch.full_like(t, ys[0])
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        y = y + (t - x0).clamp(0, x1 - x0) * ((y1 - y0) / (x1 - x0))
    return y
