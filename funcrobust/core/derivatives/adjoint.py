r"""The derivative of an iteration, exact, at the memory of one of its steps.

Iterate x_{t+1} = Φ(θ, x_t, c), t = 0 … T−1, from x_0. Unrolled reverse mode keeps every step's
graph. The adjoint keeps the iterates x_0 … x_{T−1} alone (images, not activations) and walks back:

    λ_T = ∂L/∂x_T
    λ_t = (∂Φ/∂x)ᵀ λ_{t+1},    θ̄ ← θ̄ + (∂Φ/∂θ)ᵀ λ_{t+1},    c̄ ← c̄ + (∂Φ/∂c)ᵀ λ_{t+1}    at x_t

one vjp of one step at a time, whose graph is freed before the next begins. The result is the same
sum of the same products, so it is exact (Griewank & Walther, Evaluating Derivatives, 2008, §3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from funcrobust.core.derivatives.iteration import (
    Derivative,
    Step,
    iterate,
    require_all_given,
    with_soft_labels,
)
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.network.functional import Params


@dataclass(frozen=True)
class Adjoint:
    """See `adjoint`."""

    every: int = 1
    kept: int = 1

    def __call__(
        self, step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
    ) -> Tensor:
        if _unrolled_anyway():
            return iterate(step, steps, params, start, y, center)
        if y.is_floating_point():
            return with_soft_labels(self, step, steps, params, start, y, center)
        tail = min(self.kept, steps)
        if (head := steps - tail) > 0:
            require_all_given(step, params, start, y, center)
            leaves, spec = tree_flatten(params)
            length = (head, self.every or max(1, round(head**0.5)))
            start = _Adjoint.apply(step, length, spec, start, y, center, *leaves)[0]
        return iterate(step, tail, params, start, y, center)


def adjoint(*, every: int = 1, kept: int = 1) -> Derivative:
    """Build the exact first derivative of an iteration at the memory of one step.

    In ``params``, ``start`` and ``center`` (and in ``y`` where it is floating point: soft labels)
    the same values as `unrolled`; peak memory that of one step's vjp plus T images. T vjps of one
    step, each with one more evaluation of it. ``every`` k keeps each k-th iterate alone and works
    out those between again, at the cost of yet another evaluation: T/k + k images (Griewank 1992);
    0 takes k = √T, where that is least. The last ``kept`` steps are differentiated as `unrolled`
    does it: their graphs are there when the walk back begins. Each saves an evaluation and costs
    the memory of a step, and with one, ψ of a single step is plain reverse mode. Nests under
    ``torch.func`` ``grad``, ``vjp`` and ``vmap``.

    - Beyond ``kept`` steps it has no second reverse derivative: asking for one raises. Forward over
      reverse works (``jvp`` of a ``grad``), which is what a Hessian-vector product needs.
    - What ``step`` closes over must be constant: where it is being differentiated (a step size, a
      temperature), calling raises `FuncrobustError`. Nor may a transform map it, or wrap it as an
      argument: write ``grad(lambda p: f(p, buffers))(params)``, not ``grad(f)(params, buffers)``.
    - In forward mode (``jvp``, ``jacfwd``) this is `unrolled`, which is flat in memory there.
    - Under ``torch.compile`` it is `unrolled` too: the same numbers, with the memory of unrolling.
      What stops the adjoint there is Dynamo (torch 2.15): it cannot trace an autograd.Function that
      calls ``torch.func`` transforms on what it was given inside another transform ("Expected
      FakeTensor"; a test watches for the day it can). For flat memory run ψ's training eagerly.
    - For mixed precision put ``fr.autocast`` inside the loss: an outer ``torch.autocast`` that has
      ended when backward runs would not cover the recomputation.

    Raises `FuncrobustError` for ``every`` or ``kept`` below 0.
    """
    require_count("every", every)
    require_count("kept", kept)
    return Adjoint(every, kept)


def _unrolled_anyway() -> bool:
    """Whether forward mode or a compiler is at work, or no derivative is wanted at all."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return True
    return not torch.is_grad_enabled()  # which is on inside torch.func.grad, whatever is outside


def _trajectory(
    step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
) -> Iterator[Tensor]:
    """Yield all iterates x_0, …, x_T."""
    x = start
    yield x
    for _ in range(steps):
        x = step(params, x, y, center)
        yield x


def _apply(step: Step, spec: Any, y: Tensor, x: Tensor, center: Tensor, *leaves: Tensor) -> Tensor:
    """One step as a function of tensors alone, in the order the derivatives are wanted."""
    after: Tensor = step(tree_unflatten(leaves, spec), x, y, center)
    return after


class _Adjoint(torch.autograd.Function):
    """x_T, and as a second output the kept iterates, which torch.func asks saved tensors to be."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        step: Step,
        length: tuple[int, int],
        spec: Any,
        start: Tensor,
        y: Tensor,
        center: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        steps, every = length
        kept, x = [], start
        params = tree_unflatten(leaves, spec)
        for t, x in enumerate(_trajectory(step, steps, params, start, y, center)):
            if t < steps and t % every == 0:
                kept.append(x)
        return x.clone(), torch.stack(kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.step, ctx.length, ctx.spec, start, y, center, *leaves = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or zeros as large as all iterates are made
        ctx.save_for_backward(output[1], start, y, center, *leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        iterates, start, y, center, *leaves = ctx.saved_tensors
        if cotangents[0] is None:
            return (None,) * (6 + len(leaves))
        pulled = _Pullback.apply(
            ctx.step, ctx.length, ctx.spec, cotangents[0], iterates, start, y, center, *leaves
        )
        start_bar, center_bar, *leaves_bar = pulled
        return None, None, None, start_bar, None, center_bar, *leaves_bar


class _Pullback(torch.autograd.Function):
    """The walk back, λ_T ↦ (λ_0, c̄, θ̄).

    It is a Function of its own for two reasons. ``torch.func.grad`` runs every backward with
    ``create_graph=True``; a Function's forward records no graph, so memory stays flat. And its
    own backward, the second derivative of the iteration, can say that it does not exist instead
    of being silently zero. It takes the start for that alone: the iterates, which have no
    derivative of their own, move with it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        step: Step,
        length: tuple[int, int],
        spec: Any,
        cotangent: Tensor,
        iterates: Tensor,
        start: Tensor,  # noqa: ARG004
        y: Tensor,
        center: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        lam = cotangent.clone()
        center_bar = torch.zeros_like(center)
        leaves_bar = [torch.zeros_like(leaf) for leaf in leaves]

        def advance(x: Tensor, center: Tensor, *leaves: Tensor) -> Tensor:
            return _apply(step, spec, y, x, center, *leaves)

        steps, every = length
        params = tree_unflatten(leaves, spec)
        for first in reversed(range(0, steps, every)):
            between = min(every, steps - first) - 1
            kept = iterates[first // every]
            segment = list(_trajectory(step, between, params, kept, y, center))
            while segment:
                _, pull = vjp(advance, segment.pop(), center, *leaves)  # type: ignore[misc]
                lam, center_grad, *leaf_grads = pull(lam)
                center_bar = center_bar + center_grad
                leaves_bar = [a + b for a, b in zip(leaves_bar, leaf_grads, strict=True)]
        return lam, center_bar, *leaves_bar

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # noqa: ARG004
        raise FuncrobustError(
            "the adjoint of an iteration has no second derivative in reverse mode: take jvp of "
            "grad (forward over reverse), or build psi with derivative=fr.unrolled()"
        )
