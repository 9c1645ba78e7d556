"""The derivative of an iteration's last steps alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.derivatives.adjoint import adjoint
from funcrobust.core.derivatives.iteration import Derivative, Step, constant, iterate
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.network.functional import Params


@dataclass(frozen=True)
class Truncated:
    """See `truncated`."""

    k: int

    def __call__(
        self, step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
    ) -> Tensor:
        before = steps - self.k
        x = start
        if before > 0:
            held = (start.detach(), y, center.detach())
            x = iterate(step, before, constant(params), *held).detach()
            if not torch.compiler.is_compiling():
                x = _CutFrom.apply(start, x)
        # No step's graph is kept: a second reverse derivative through it would leave out, without a
        # word, how the iterate held constant moves. The walk back refuses one.
        walk = adjoint(kept=0)
        return walk(step, min(steps, self.k), params, x, y, center)


def truncated(k: int) -> Derivative:
    """Build the `adjoint` of the last ``k`` ≥ 1 steps, the iterate before them held constant.

    k vjps, whatever the steps; biased by all that reaches the end through that iterate (Shaban et
    al. 2019, arXiv:1810.10667). Where it is longer than the iteration it is the adjoint; elsewhere
    the start has no derivative, and asking for one raises `FuncrobustError`: it would be a zero
    that means nothing. (In compiled code, where nothing can be raised, it is that zero.) A second
    derivative forward over reverse (``jvp`` of ``grad``) is of the last ``k`` steps alone, too: it
    leaves out how the iterate before them moves, and is not the Hessian of anything.

    Raises `FuncrobustError` for a ``k`` below 1.
    """
    require_count("k", k, minimum=1)
    return Truncated(k)


def one_step() -> Derivative:
    """Build ``truncated(1)``: one vjp (Bolte et al. 2023, arXiv:2305.13768)."""
    return Truncated(1)


class _CutFrom(torch.autograd.Function):
    """The value ``x``, and an error where a derivative in ``start`` is asked for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(start: Tensor, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # noqa: ARG004
        raise _no_derivative_in_the_start()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:  # noqa: ARG004
        raise _no_derivative_in_the_start()


def _no_derivative_in_the_start() -> FuncrobustError:
    return FuncrobustError(
        "a truncated derivative has none in the start: pass start.detach() if it is constant (and "
        "center=x to keep the derivative in the centre), or use fr.adjoint()"
    )
