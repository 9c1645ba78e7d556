"""Balls made of balls: another norm's steps, a mask, means that must hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.balls.ball import (
    Ball,
    Bounds,
    bounds_of,
    inside,
    require_float,
    require_images,
)
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError, require_count


@dataclass(frozen=True, eq=False)
class Composed:
    """A ball that answers as ``ball`` does; what is composed overrides.

    Two are equal if they are one: masks have no one truth value.
    """

    ball: Ball

    @property
    def differentiable(self) -> bool:
        return self.ball.differentiable

    @property
    def radius(self) -> float:
        """The ball's, inf if it has none."""
        return float(getattr(self.ball, "radius", math.inf))

    @property
    def bounds(self) -> Bounds:
        """The data's, as far as the ball tells them."""
        return bounds_of(self.ball)

    @property
    def steps_apart(self) -> bool:
        """Whether steps are another ball's, so that their length is no share of the radius."""
        return bool(getattr(self.ball, "steps_apart", False))

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return self.ball.project(x, center)

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.ball.steepest(gradient)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.ball.sample(center, generator)


@dataclass(frozen=True)
class WithSteps(Composed):
    """See `with_steps`."""

    steps: Ball

    @property
    def differentiable(self) -> bool:
        return self.steps.differentiable

    @property
    def steps_apart(self) -> bool:
        return True

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.steps.steepest(gradient)


@dataclass(frozen=True, eq=False)
class Masked(Composed):
    """See `masked`."""

    mask: Tensor

    def __repr__(self) -> str:
        return f"Masked(ball={self.ball}, mask={tuple(self.mask.shape)})"

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        _require_broadcast(self.mask, x)
        return torch.where(self.mask, self.ball.project(x, center), center)

    def steepest(self, gradient: Tensor) -> Tensor:
        _require_broadcast(self.mask, gradient)
        return self.ball.steepest(torch.where(self.mask, gradient, 0.0))

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.project(self.ball.sample(center, generator), center)


@dataclass(frozen=True, eq=False)
class WithBlockMeans(Composed):
    """See `with_block_means`."""

    scale: int
    low: Tensor | None = None

    def __repr__(self) -> str:
        low = "" if self.low is None else f", low={tuple(self.low.shape)}"
        return f"WithBlockMeans(ball={self.ball}, scale={self.scale}{low})"

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        require_float(x, center)
        require_images("with_block_means", x)
        low = F.avg_pool2d(center, self.scale) if self.low is None else self.low
        _require_fitting(low, x, self.scale)
        confining = self.ball
        while isinstance(confining, WithSteps):
            confining = confining.ball
        if isinstance(confining, Linf):  # a box, too
            least, most = center - confining.radius, center + confining.radius
            least, most = inside(least, self.bounds), inside(most, self.bounds)
        else:
            x = self.ball.project(x, center)
            ends = self.bounds or (-math.inf, math.inf)
            least, most = (torch.full_like(x, end) for end in ends)
        return _shifted(x, low, least, most, self.scale)

    def steepest(self, gradient: Tensor) -> Tensor:
        _require_squares(gradient, self.scale)
        # The part of the gradient that the means see would be undone by the projection.
        seen = _enlarged(F.avg_pool2d(gradient, self.scale), self.scale)
        return self.ball.steepest(gradient - seen)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.project(self.ball.sample(center, generator), center)


def with_steps(ball: Ball, steps: Ball) -> Ball:
    """Build ``ball`` with the steps of another: confined by the one, steepest in the other.

    ``with_steps(linf(8 / 255), l2(1.0))`` walks the L∞ ball by ∇/‖∇‖₂, which ψ can differentiate.
    Raises `FuncrobustError` where either steps otherwise than by adding a direction (`fourier`).
    """
    for each in (ball, steps):
        require_straight(each)
        _require_alone(each, "a mask or block means come last: fr.masked(fr.with_steps(...), mask)")
    return WithSteps(ball, steps)


def masked(ball: Ball, mask: Tensor) -> Ball:
    """Build ``ball`` where ``mask`` is true; elsewhere x stays the centre's, to the bit.

    ``mask`` is boolean and broadcasts against x: (H, W) or (B, 1, H, W) for images (B, C, H, W),
    (d,) for features (B, d), (T, 1) for embeddings (B, T, d). Steps have the ball's unit size
    within the mask. The centre must be what is to be kept. Samples are those of the ball, cut to
    the mask.
    """
    require_straight(ball)
    _require_alone(
        ball,
        "give one mask, mask & other"
        if isinstance(ball, Masked)
        else "a mask and block means undo each other: use one of them",
    )
    if mask.dtype != torch.bool:
        raise FuncrobustError(f"a mask is boolean (true where x may change), got {mask.dtype}")
    return Masked(ball, mask)


def with_block_means(ball: Ball, scale: int, low: Tensor | None = None) -> Ball:
    """Build ``ball`` cut with {x : the mean of every scale×scale square of x is as ``low`` says}.

    For images (B, C, H, W); ``low`` (B, C, H/scale, W/scale) holds the means, by default the
    centre's own. After the ball's own projection x goes to the nearest point that has these means
    within the data bounds: clip(x + t), t one number a square. Of an L∞ ball, a box, it is the
    nearest point that is in the ball as well. The means hold wherever the box has such points (and
    an L2 ball is not left, where ``low`` is the centre's own). For super-resolution that keeps to
    its input.
    """
    require_straight(ball)
    _require_alone(
        ball,
        "give one scale and its means"
        if isinstance(ball, WithBlockMeans)
        else "a mask and block means undo each other: use one of them",
    )
    require_count("scale", scale, minimum=1)
    return WithBlockMeans(ball, scale, low)


def _shifted(x: Tensor, low: Tensor, least: Tensor, most: Tensor, scale: int) -> Tensor:
    """Return clip(x + t, least, most), t one number a square, such that its means are ``low``.

    That is x's orthogonal projection onto these points. The mean is increasing in t, so halving
    finds which of a square's numbers are clipped; of those that are not, t follows, and with it
    its derivative. Where no t will do, all of a square is at the end that is nearer.
    """
    squares, least, most = (_in_squares(each, scale) for each in (x, least, most))
    goal = low.unsqueeze(-1).expand(*squares.shape[:-1], 1)
    held = squares.detach(), least.detach(), most.detach(), goal.detach()
    t = _halved(*held)
    free = (held[0] + t > held[1]) & (held[0] + t < held[2])
    count = free.sum(-1, keepdim=True)
    clipped = torch.where(free, squares, (squares + t).clamp(least, most))
    needed = (goal * squares.shape[-1] - clipped.sum(-1, keepdim=True)) / count.clamp_min(1)
    moved = (squares + torch.where(count > 0, needed, t)).clamp(least, most)
    found: Tensor = moved.unflatten(-1, (scale, scale)).movedim(-2, -3).reshape(x.shape)
    return found


HALVINGS = {torch.float64: 52}
"""Of the range of t; 24 in single and half precision."""


def _halved(x: Tensor, least: Tensor, most: Tensor, goal: Tensor) -> Tensor:
    below = (least - x).amin(-1, keepdim=True)
    above = (most - x).amax(-1, keepdim=True)
    # An end that there is not: where no number is clipped there, t is no further than this.
    below = torch.where(below.isinf(), goal - x.amax(-1, keepdim=True), below)
    above = torch.where(above.isinf(), goal - x.amin(-1, keepdim=True), above)
    for _ in range(HALVINGS.get(x.dtype, 24)):
        t = (below + above) / 2
        short = (x + t).clamp(least, most).mean(-1, keepdim=True) < goal
        below, above = torch.where(short, t, below), torch.where(short, above, t)
    return (below + above) / 2


def _in_squares(x: Tensor, scale: int) -> Tensor:
    """(…, H, W) -> (…, H/scale, W/scale, scale²)."""
    x = x.unflatten(-2, (-1, scale)).unflatten(-1, (-1, scale))
    return x.movedim(-3, -2).flatten(-2)


def _enlarged(x: Tensor, scale: int) -> Tensor:
    return x.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _require_alone(ball: Ball, why: str) -> None:
    while isinstance(ball, Composed):
        if isinstance(ball, Masked | WithBlockMeans):
            raise FuncrobustError(why)
        ball = ball.ball


def _require_broadcast(mask: Tensor, x: Tensor) -> None:
    sizes = zip(reversed(mask.shape), reversed(x.shape), strict=False)
    if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sizes):
        own = mask.ndim == x.ndim and len(mask) > 1  # each example's, and here are not all of them
        alone = " (of each example its own: perturbations take that, evaluations one mask for all)"
        raise FuncrobustError(
            f"a mask of shape {tuple(mask.shape)} does not broadcast to x of shape {tuple(x.shape)}"
            f": give it x's shape, or sizes of 1{alone * own}"
        )


def _require_squares(x: Tensor, scale: int) -> None:
    height, width = x.shape[-2:]
    if height % scale or width % scale:
        raise FuncrobustError(
            f"{height}x{width} images cannot be cut into squares of {scale}x{scale}: choose a "
            "scale that divides both sides"
        )


def _require_fitting(low: Tensor, x: Tensor, scale: int) -> None:
    _require_squares(x, scale)
    height, width = x.shape[-2:]
    if low.shape[-2:] != (height // scale, width // scale):
        raise FuncrobustError(
            f"{height}x{width} images in squares of {scale}x{scale} cannot have means of "
            f"{'x'.join(map(str, low.shape[-2:]))}"
        )


def require_straight(
    ball: Ball,
    what: str = "and cannot be composed: use fr.unconstrained(), fr.l2(radius) or fr.linf(radius)",
) -> None:
    if hasattr(ball, "advance"):
        raise FuncrobustError(f"{type(ball).__name__} does not step in a straight line, {what}")
