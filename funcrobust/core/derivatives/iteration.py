"""An iteration, and what a way of differentiating it is: a value that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from funcrobust.core.arguments import is_tracked
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Params

Step = Callable[[Params, Tensor, Tensor, Tensor], Tensor]
"""``(params, x, y, center) -> x``: one step Φ of an iteration."""


class Derivative(Protocol):
    """A way to take ``steps`` steps Φ from ``start`` such that the end has a derivative.

    Write your own: any function of these arguments that returns x_T will do. What it computes must
    be x_T itself, whatever derivative it gives it.
    """

    def __call__(
        self, step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
    ) -> Tensor:
        """Return x_T of x_{t+1} = Φ(θ, x_t, y, c), x_0 = ``start`` (B, …)."""
        ...


def iterate(
    step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
) -> Tensor:
    """Apply ``step`` ``steps`` times: the unrolled iteration, differentiable to any order."""
    x = start
    for _ in range(steps):
        x = step(params, x, y, center)
    return x


@dataclass(frozen=True)
class Unrolled:
    """See `unrolled`."""

    def __call__(
        self, step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
    ) -> Tensor:
        return iterate(step, steps, params, start, y, center)


def unrolled() -> Derivative:
    """Build plain reverse mode through every step: exact to any order, the memory of T steps.

    T vjps of one step and no evaluation more.
    """
    return Unrolled()


def with_soft_labels(
    derivative: Derivative, step: Step, steps: int, params: Params, start: Tensor, y: Tensor,
    center: Tensor,
) -> Tensor:  # fmt: skip
    """Let floating-point labels ride along with the parameters: they have a derivative too."""

    def soft(both: Any, x: Tensor, _: Tensor, center: Tensor) -> Tensor:
        return step(both["params"], x, both["y"], center)

    placeholder = torch.zeros((), dtype=torch.int64)
    both: Any = {"params": params, "y": y}
    return derivative(soft, steps, both, start, placeholder, center)


def constant(params: Params) -> Params:
    """Return the same tensors, cut from every derivative; dicts of them may nest."""
    held: Params = tree_map(lambda p: p.detach(), params)
    return held


def require_all_given(step: Step, params: Params, start: Tensor, y: Tensor, center: Tensor) -> None:
    """Raise where ``step`` hangs on a tensor that is differentiated and not among its arguments.

    A derivative that works step by step does not follow it, and would be finite and wrong. One
    example tells, unless the step closes over a whole batch.
    """
    if torch.compiler.is_compiling():  # where nothing can be told
        return
    held: Any = tree_map(lambda t: t.detach(), params)
    for rows in (slice(1), slice(None)):
        part = (y[rows] if y.ndim else y, center[rows].detach())
        try:
            after = step(held, start[rows].detach(), *part)
        except Exception:  # of whatever the loss is: a mask of the whole batch, an assertion
            continue
        if is_tracked(after):
            raise FuncrobustError(
                "psi's step closes over a tensor that is being differentiated (a step size, a "
                "temperature, another network), which its derivative would not follow: put it "
                "among params, .detach() it if it is constant, or use derivative=fr.unrolled()"
            )
        return
