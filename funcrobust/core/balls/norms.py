"""Threat models: where a perturbation may go, and which way is steepest there.

Images are (B, C, H, W) with values inside ``bounds``; norms are taken per example over C·H·W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import largest_to_one, per_example, squared_norm, unit

Bounds = tuple[float, float]


@runtime_checkable
class Ball(Protocol):
    """A threat model. Write your own: these three functions and one honest flag.

    A step from x is project(x + size · steepest(∇ℓ)). A ball whose steps are not straight lines in
    the image also has ``advance(x, gradient, size) -> x``, which replaces the sum (`Fourier`).
    """

    @property
    def differentiable(self) -> bool:
        """Whether `steepest` has a useful derivative (``sign`` has none, anywhere).

        A class attribute will do.
        """
        ...

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        """Bring x (B, C, H, W) into the ball around ``center`` and into the data bounds."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the unit-size direction that ascends ``gradient`` fastest in the ball's norm."""
        ...

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a random start around ``center``, inside the ball and the data bounds."""
        ...


@dataclass(frozen=True)
class Linf:
    """See `linf`."""

    radius: float
    bounds: Bounds = (0.0, 1.0)
    differentiable: bool = False

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return (center + (x - center).clamp(-self.radius, self.radius)).clamp(*self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        if math.isinf(self.radius):
            return _uniform(center, generator) * (self.bounds[1] - self.bounds[0]) + self.bounds[0]
        u = 2.0 * _uniform(center, generator) - 1.0
        return self.project(center + self.radius * u, center)


@dataclass(frozen=True)
class L2:
    """See `l2`."""

    radius: float
    bounds: Bounds = (0.0, 1.0)
    differentiable: bool = True

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        if math.isinf(self.radius):
            return x.clamp(*self.bounds)
        delta = x - center
        squared = per_example(squared_norm(delta), x)
        outside = squared > self.radius**2
        # The inner where keeps sqrt'(0) = inf out of the derivative at the ball's centre.
        norm = torch.where(outside, squared, 1.0).sqrt()
        shrunk = torch.where(outside, delta * (self.radius / norm), delta)
        return (center + shrunk).clamp(*self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return unit(gradient)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        if math.isinf(self.radius):
            raise FuncrobustError("an L2 ball of infinite radius has no uniform start: give one")
        direction = self.steepest(_normal(center, generator))
        u = torch.rand(center.shape[0], generator=generator, device=center.device)
        # A uniform point of a d-ball has its radius distributed as u^(1/d).
        radius = self.radius * u.to(center.dtype) ** (1.0 / center.shape[1:].numel())
        return self.project(center + per_example(radius, center) * direction, center)


@dataclass(frozen=True)
class Unconstrained:
    """See `unconstrained`."""

    bounds: Bounds = (0.0, 1.0)
    differentiable: bool = True

    def project(self, x: Tensor, center: Tensor) -> Tensor:  # noqa: ARG002 (the contract's)
        return x.clamp(*self.bounds)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self.bounds
        return low + (high - low) * _uniform(center, generator)


@dataclass(frozen=True)
class SmoothLinf(Linf):
    """See `smooth_linf`."""

    differentiable: bool = True
    temperature: float = 0.1

    def steepest(self, gradient: Tensor) -> Tensor:
        scaled = largest_to_one(gradient)
        size = scaled.square().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).eps)
        return torch.tanh(scaled / (self.temperature * per_example(size.sqrt(), gradient)))


@dataclass(frozen=True)
class Fourier(Unconstrained):
    """See `fourier`."""

    decay: float = 0.0

    def advance(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        low, high = self.bounds
        inside = ((x - low) / (high - low)).clamp(_EDGE, 1.0 - _EDGE)
        slope = gradient * (high - low) * inside * (1.0 - inside)  # ∂ℓ/∂logit
        logit = torch.logit(inside) + size * self._spread(slope)
        return low + (high - low) * torch.sigmoid(logit)

    def _spread(self, slope: Tensor) -> Tensor:
        """F⁻¹(s² ⊙ F(slope)), the step that a step on the scaled coefficients makes."""
        if self.decay == 0.0:
            return slope
        height, width = slope.shape[-2:]
        rows, columns = (
            torch.fft.fftfreq(n, device=slope.device, dtype=slope.dtype) for n in (height, width)
        )
        frequency = (rows[:, None].square() + columns.square()).sqrt()
        squared = frequency.clamp_min(1.0 / max(height, width)) ** (-2.0 * self.decay)
        spread: Tensor = torch.fft.ifft2(torch.fft.fft2(slope) * (squared / squared.mean())).real
        return spread


@dataclass(frozen=True)
class RandomSmoothing:
    """See `random_smoothing`."""

    sigma: float
    differentiable: bool = False

    def project(self, x: Tensor, center: Tensor) -> Tensor:  # noqa: ARG002 (the contract's)
        return x

    def steepest(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        return center + self.sigma * _normal(center, generator)


_EDGE = 1e-4
"""How near to the bounds an image may be where its logit is taken: 0.03 of a gray level."""


def smooth_linf(radius: float, *, temperature: float = 0.1, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """Build the L∞ ball with a smooth steepest direction, for use inside `psi`.

    tanh(∇/(τ·rms(∇))) per example stands for sign(∇), which has no derivative; τ is the
    ``temperature``, and τ → 0 is `linf`. Entries much larger than τ times the root mean square move
    by the whole step, those much smaller in proportion. Raises `FuncrobustError` for a radius below
    0 or a temperature that is not positive.
    """
    if not 0 < temperature < math.inf:
        raise FuncrobustError(f"temperature must be a finite number > 0, got {temperature}")
    return SmoothLinf(_radius(radius), bounds, temperature=float(temperature))


def fourier(*, decay: float = 0.0, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """Build the Fourier parameterisation: steps are taken on an image's spectrum.

    The image is sigmoid(F⁻¹(s ⊙ w)), F the unitary 2-D Fourier transform and w its coefficients; a
    step adds size · ∂ℓ/∂w to w, unnormalised. Carried back to the image this is

        logit(x) ← logit(x) + size · F⁻¹( s² ⊙ F( ∂ℓ/∂logit(x) ) )

    so images stay strictly inside their ``bounds``, and no ball confines them. s = f^(−``decay``)
    with the mean of s² at 1: 0 is the parameterisation of ``robustness`` (``constraint='fourier'``,
    whose call of the old ``torch.irfft`` no longer exists); 1 is the decorrelated one of Olah et
    al. 2017 ("Feature visualization", preconditioning), which draws large shapes first.
    """
    if not 0 <= decay < math.inf:
        raise FuncrobustError(f"decay must be a finite number >= 0, got {decay}")
    return Fourier(bounds, decay=float(decay))


def random_smoothing(sigma: float) -> Ball:
    """Build Gaussian noise in place of an attack: samples are x + σ·N(0, 1), steps stand still.

    ``robustness``'s RandomStep, for randomised smoothing (Cohen et al. 2019, arXiv:1902.02918);
    samples may leave the data bounds, as there.
    """
    if not 0 <= sigma < math.inf:
        raise FuncrobustError(f"sigma must be a finite number >= 0, got {sigma}")
    return RandomSmoothing(float(sigma))


def linf(radius: float, *, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """Build the L∞ ball {x : ‖x − center‖_∞ ≤ radius}; its steepest direction is sign(∇).

    ``radius`` is in units of the data (8/255 is CIFAR-10's usual one), ``inf`` leaves only the
    bounds. ``sign`` has derivative zero, so `psi` refuses this ball. Samples are uniform in the
    ball, then clamped to the bounds (uniform in the bounds for ``inf``). ``bounds`` are the data's
    least and greatest value. Raises `FuncrobustError` for a radius below 0 or NaN.
    """
    return Linf(_radius(radius), bounds)


def l2(radius: float, *, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """Build the L2 ball {x : ‖x − center‖₂ ≤ radius}; its steepest direction is ∇/‖∇‖₂.

    ``radius`` is in units of the data over the whole image (0.5 is CIFAR-10's usual one), ``inf``
    leaves only the bounds. Samples are uniform in the ball, then clamped to the ``bounds``. Raises
    `FuncrobustError` for a radius below 0 or NaN, and when an infinite ball is sampled.
    """
    return L2(_radius(radius), bounds)


def unconstrained(*, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """Build the data bounds alone; the steepest direction is the gradient itself, unnormalised.

    Gradients are per example, so a step size here equals one of a batch-mean loss (as in
    ``robustness``) divided by the batch size. Samples are uniform in the bounds.
    """
    return Unconstrained(bounds)


def _radius(radius: float) -> float:
    if math.isnan(radius) or radius < 0:
        raise FuncrobustError(f"a ball's radius must be >= 0, got {radius}")
    return float(radius)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
