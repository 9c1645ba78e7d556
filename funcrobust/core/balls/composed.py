"""Balls made of balls: another norm's steps, a mask, a measurement that must hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.balls.norms import Ball, Bounds
from funcrobust.core.errors import FuncrobustError, require_count


@dataclass(frozen=True)
class _Composed:
    """A ball that answers as ``ball`` does; what is composed overrides."""

    ball: Ball

    @property
    def differentiable(self) -> bool:
        return self.ball.differentiable

    @property
    def bounds(self) -> Bounds:
        """The data's, as far as the ball knows them."""
        bounds: Bounds = getattr(self.ball, "bounds", (0.0, 1.0))
        return bounds

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return self.ball.project(x, center)

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.ball.steepest(gradient)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.ball.sample(center, generator)


@dataclass(frozen=True)
class StepsOf(_Composed):
    """See `steps_of`."""

    steps: Ball

    @property
    def differentiable(self) -> bool:
        return self.steps.differentiable

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.steps.steepest(gradient)


@dataclass(frozen=True)
class Masked(_Composed):
    """See `masked`."""

    mask: Tensor

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return torch.where(self.mask, self.ball.project(x, center), center)

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.ball.steepest(gradient * self.mask)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.project(self.ball.sample(center, generator), center)


@dataclass(frozen=True)
class Measured(_Composed):
    """See `measured`."""

    scale: int
    low: Tensor | None = None

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        low = F.avg_pool2d(center, self.scale) if self.low is None else self.low
        _require_fitting(low, x, self.scale)
        x = self.ball.project(x, center)
        x = x + _enlarged(low - F.avg_pool2d(x, self.scale), self.scale)
        return x.clamp(*self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        # The part of the gradient that the measurement sees would be undone by the projection.
        seen = _enlarged(F.avg_pool2d(gradient, self.scale), self.scale)
        return self.ball.steepest(gradient - seen)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return self.project(self.ball.sample(center, generator), center)


def steps_of(ball: Ball, steps: Ball) -> Ball:
    """Build ``ball`` with the steps of another: confined by the one, steepest in the other.

    ``steps_of(linf(8 / 255), l2(1.0))`` walks the L∞ ball by ∇/‖∇‖₂, which ψ can differentiate.
    Raises `FuncrobustError` where either steps otherwise than by adding a direction (`fourier`).
    """
    for each in (ball, steps):
        _require_straight(each)
    return StepsOf(ball, steps)


def masked(ball: Ball, mask: Tensor) -> Ball:
    """Build ``ball`` where ``mask`` is true; elsewhere images stay the centre's, to the bit.

    ``mask`` is boolean and broadcasts against (B, C, H, W): (H, W), (B, 1, H, W), .... Steps have
    the ball's unit size within the mask. The centre must be the image to keep. Samples are those of
    the ball, cut to the mask.
    """
    _require_straight(ball)
    _require_alone(ball)
    if mask.dtype != torch.bool:
        raise FuncrobustError(f"a mask is boolean (true where images may change), got {mask.dtype}")
    return Masked(ball, mask)


def measured(ball: Ball, scale: int, low: Tensor | None = None) -> Ball:
    """Build ``ball`` cut with {x : the mean of every scale×scale square of x is as measured}.

    ``low`` (B, C, H/scale, W/scale) holds the measured means, by default the centre's own. The set
    is affine and x + U(low − A·x) is its orthogonal projection, with A the mean over squares and U
    its pseudo-inverse, repetition; it comes after the ball's, and the data bounds after it, so that
    all hold to within what the later ones move (about a gray level of the means, where images
    saturate). For super-resolution that keeps to its input.
    """
    _require_straight(ball)
    _require_alone(ball)
    require_count("scale", scale, minimum=1)
    return Measured(ball, scale, low)


def _enlarged(x: Tensor, scale: int) -> Tensor:
    return x.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _require_alone(ball: Ball) -> None:
    if isinstance(ball, Masked | Measured):
        raise FuncrobustError("a mask and a measurement undo each other: use one of them")


def _require_fitting(low: Tensor, x: Tensor, scale: int) -> None:
    height, width = x.shape[-2:]
    if height % scale or width % scale or low.shape[-2:] != (height // scale, width // scale):
        raise FuncrobustError(
            f"{height}x{width} images measured over {scale}x{scale} squares cannot have means of "
            f"{'x'.join(map(str, low.shape[-2:]))}"
        )


def _require_straight(ball: Ball) -> None:
    if hasattr(ball, "advance"):
        raise FuncrobustError(
            f"{type(ball).__name__} does not step in a straight line, and cannot be composed"
        )
