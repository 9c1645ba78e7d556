"""The gradient that an adversary climbs, and what becomes of an entry that is no number.

Networks have such entries: √0, 0/0, a masked logit. One NaN would make an image that fools nobody,
and so a network that looks robust.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError


def slope_of(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient as it is; 0 where ``value`` does not hang on x, as with logits cut off.

    A check says so by name (`checks.gradients`), where an error would say less.
    """
    if torch.is_inference_mode_enabled():
        raise FuncrobustError(
            "an attack takes gradients, and inside torch.inference_mode() there are none: use "
            "torch.no_grad(), or nothing at all"
        )
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def usable(gradient: Tensor) -> Tensor:
    """Return a gradient (B, …) to step along: a NaN says nowhere to go, and is 0.

    An infinite entry is as large as still has a finite norm together with all others.
    """
    numbers = max(gradient[:1].numel(), 1)
    # Norms of half precision are summed in float32.
    summed = torch.promote_types(gradient.dtype, torch.float32)
    large = (torch.finfo(summed).max / numbers) ** 0.5 / 2
    large = min(large, torch.finfo(gradient.dtype).max)
    return gradient.nan_to_num(nan=0.0, posinf=large, neginf=-large)


def gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of ``value`` in x (B, …), `usable`; see `slope_of`."""
    return usable(slope_of(value, x))


def climbable(x: Tensor) -> Tensor:
    """Return x, through which every gradient comes back `usable`; forward ones pass as they are."""
    found: Tensor = _Climbable.apply(x)
    return found


class _Climbable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:  # noqa: ARG004
        return usable(cotangents[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:  # noqa: ARG004
        return tangents[0].clone()
