"""Steps on an image's spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core.balls.ball import IMAGES, Ball, checked_bounds, require_images
from funcrobust.core.balls.unconstrained import Unconstrained
from funcrobust.core.errors import FuncrobustError

_EDGE = 1e-4
"""How near to the bounds an image may be where its logit is taken: 0.03 of a gray level."""


@dataclass(frozen=True)
class Fourier(Unconstrained):
    """See `fourier`."""

    decay: float = 0.0

    def advance(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        require_images("fourier", x)
        assert self.bounds is not None
        low, high = self.bounds
        within = ((x - low) / (high - low)).clamp(_EDGE, 1.0 - _EDGE)
        slope = gradient * (high - low) * within * (1.0 - within)  # ∂ℓ/∂logit
        logit = torch.logit(within) + size * self._spread(slope)
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


def fourier(*, decay: float = 0.0, bounds: tuple[float, float] = IMAGES) -> Ball:
    """Build the Fourier parameterisation: steps are taken on an image's spectrum.

    The image is sigmoid(F⁻¹(s ⊙ w)), F the unitary 2-D Fourier transform and w its coefficients; a
    step adds size · ∂ℓ/∂w to w, unnormalised. Carried back to the image this is

        logit(x) ← logit(x) + size · F⁻¹( s² ⊙ F( ∂ℓ/∂logit(x) ) )

    so images (B, C, H, W) stay inside their ``bounds``, and no ball confines them.
    s = f^(−``decay``) with the mean of s² at 1: 0 is the parameterisation of ``robustness``
    (``constraint='fourier'``, whose call of the old ``torch.irfft`` no longer exists); 1 is the
    decorrelated one of Olah et al. 2017 ("Feature visualization", preconditioning), which draws
    large shapes first. Raises `FuncrobustError` for a decay below 0 or bounds that are not finite,
    and in a step for what has not the shape of images.
    """
    if not 0 <= decay < math.inf:
        raise FuncrobustError(f"decay must be a finite number >= 0, got {decay}")
    return Fourier(checked_bounds(bounds, finite=True), decay=float(decay))
