"""What a threat model is: where a perturbation may go, and which way is steepest there.

Examples are (B, ...) of any shape; norms are taken per example, over all dimensions but the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from funcrobust.core.arguments import require_number, require_tensor
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import RowGenerators, drawn

Bounds = tuple[float, float] | None
"""The data's least and greatest value; None: it has none (features, normalised inputs)."""

IMAGES: tuple[float, float] = (0.0, 1.0)


@runtime_checkable
class Ball(Protocol):
    """A threat model. Write your own: these three functions and one honest flag.

    A step from x is project(x + size · steepest(∇ℓ)). A ball whose steps are not straight lines in
    the image also has ``advance(x, gradient, size) -> x``, which replaces the sum (see `fourier`).
    One that clamps to data bounds has them as ``bounds``, so that a centre outside them is refused.
    """

    @property
    def differentiable(self) -> bool:
        """Whether `steepest` has a useful derivative (``sign`` has none, anywhere).

        A class attribute will do.
        """
        ...

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        """Bring x (B, ...) into the ball around ``center`` and into the data bounds."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the unit-size direction that ascends ``gradient`` fastest in the ball's norm."""
        ...

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a random start around ``center``, inside the ball and the data bounds."""
        ...


def bounds_of(ball: Ball) -> Bounds:
    """Return the data bounds that a ball clamps to, as far as it tells."""
    bounds: Bounds = getattr(ball, "bounds", None)
    return bounds


def inside(x: Tensor, bounds: Bounds) -> Tensor:
    """Clamp x to the data bounds."""
    return x if bounds is None else x.clamp(*bounds)


def require_center(ball: Ball, center: Tensor) -> None:
    """Raise `FuncrobustError` unless ``center`` is floating point and inside the ball's bounds.

    Clamping would move it there in silence: inputs divided by their standard deviation, say, by
    more than any radius. A rounding outside is let pass. Costs one pass over the examples and, on
    an accelerator, the wait for its result; nothing in compiled code, nor inside a ``torch.func``
    transform (where the centre may be another operator's point: CURE's x + z), nor where values
    cannot be seen (on the meta device), nor `known_inside`, which then goes unchecked.
    """
    require_float(center)
    bounds = bounds_of(ball)
    if bounds is None or bounds == (-math.inf, math.inf) or torch.compiler.is_compiling():
        return
    if _KNOWN_INSIDE.get() or torch._C._functorch.is_functorch_wrapped_tensor(center):
        return
    try:
        least, greatest = torch.stack(center.detach().aminmax()).tolist()
    except RuntimeError:  # no values to be seen, or no examples
        return
    low, high = bounds
    precision = max(torch.finfo(center.dtype).eps, torch.finfo(torch.float32).eps)
    slack = 4 * precision * max(abs(b) for b in bounds if math.isfinite(b))
    if not (least >= low - slack and greatest <= high + slack):
        raise FuncrobustError(
            f"the centre has values in [{least:.4g}, {greatest:.4g}], outside the ball's bounds "
            f"[{low:g}, {high:g}], which would clamp it: give the ball the data's own bounds=..., "
            "or bounds=None for none"
        )


_KNOWN_INSIDE = ContextVar("known_inside", default=False)


@contextmanager
def known_inside() -> Iterator[None]:
    """Let `require_center` believe it here: a training that looked at a batch waits for no other.

    Its images are all made in one way, and to look is to wait for the GPU's last update.
    """
    token = _KNOWN_INSIDE.set(True)
    try:
        yield
    finally:
        _KNOWN_INSIDE.reset(token)


def require_float(*tensors: Tensor) -> None:
    """Raise unless all are tensors of floating point."""
    for x in tensors:
        require_tensor(x)
        if not x.is_floating_point():
            hint = ": divide by 255" if x.dtype == torch.uint8 else ""
            raise FuncrobustError(f"a perturbation is of floating-point x, got {x.dtype}{hint}")


def require_images(name: str, x: Tensor) -> None:
    """Raise unless x has the dimensions of images."""
    if x.ndim != 4:
        raise FuncrobustError(f"{name} is for images (B, C, H, W), got shape {tuple(x.shape)}")


def checked_largest(radius: float, bounds: Bounds) -> float:
    """Return the radius of an L∞ ball; refuse gray levels for images in [0, 1].

    Who writes 8 for 8/255 would attack with any image at all.
    """
    radius = checked_radius(radius)
    if bounds == IMAGES and 3.0 < radius < math.inf:
        raise FuncrobustError(
            f"a radius of {radius:g} exceeds the range of images in [0, 1]: eight gray levels are "
            '8/255, float("inf") leaves the bounds alone'
        )
    return radius


def checked_radius(radius: float) -> float:
    """Return ``radius`` as a float, or raise where it is below 0, NaN or being differentiated."""
    number = math.nan if isinstance(radius, str) else require_number("a ball's radius", radius)
    if math.isnan(number) or number < 0:
        raise FuncrobustError(f"a ball's radius must be a number >= 0, got {radius!r}")
    return number


def checked_bounds(bounds: Bounds, *, finite: bool = False) -> Bounds:
    """Return ``bounds`` as floats, or raise where they are none of a low and a higher number."""
    if bounds is None and not finite:
        return None
    try:
        low, high = (math.nan, math.nan) if bounds is None else map(float, bounds)
    except (TypeError, ValueError):  # of each channel, or not two
        raise FuncrobustError(
            f"bounds are two numbers, (low, high), of all channels alike; got {bounds}: where each "
            "channel has its own put the normalisation into the network, and x stays in [0, 1]"
        ) from None
    if not low < high or (finite and not math.isfinite(high - low)):
        raise FuncrobustError(
            f"bounds must be {'finite, ' if finite else ''}(low, high) with low < high"
            f"{'' if finite else ', or None'}; got {bounds}"
        )
    return low, high


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from [0, 1), in the shape of ``like``."""
    require_float(like)
    _require_generator(generator)
    return drawn(torch.rand, like.shape, generator, like, like.dtype)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from N(0, 1), in the shape of ``like``."""
    require_float(like)
    _require_generator(generator)
    return drawn(torch.randn, like.shape, generator, like, like.dtype)


def _require_generator(generator: torch.Generator) -> None:
    if not isinstance(generator, torch.Generator | RowGenerators):
        raise FuncrobustError(
            "random starts are drawn from a generator, fr.generator(seed, purpose), not from "
            f"{generator!r}"[:200]
        )


def uniform_in_bounds(bounds: Bounds, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the data bounds, in the shape of ``like``; raise where they are not finite."""
    if bounds is None or not math.isfinite(bounds[1] - bounds[0]):
        raise FuncrobustError(
            "a ball of infinite radius without finite bounds has no uniform start: give one"
        )
    low, high = bounds
    return low + (high - low) * uniform(like, generator)
