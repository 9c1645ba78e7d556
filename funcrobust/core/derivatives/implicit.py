r"""The derivative of a fixed point, without the steps that led there.

Where an iteration has converged, x* = Φ(θ, x*, c), and the implicit function theorem gives, for a
cotangent v of x*,

    (I − ∂Φ/∂x)ᵀ λ = v,    θ̄ = (∂Φ/∂θ)ᵀ λ,    c̄ = (∂Φ/∂c)ᵀ λ    at x*,

and nothing for the start, of which a fixed point is independent (Bai et al. 2019,
arXiv:1909.01377; Blondel et al. 2022, arXiv:2105.15183).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchopt.linear_solve import solve_normal_cg

from funcrobust.core.derivatives.iteration import (
    Derivative,
    Step,
    iterate,
    require_all_given,
    with_soft_labels,
)
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.examples import flat
from funcrobust.core.network.functional import Params

ACCEPTED = 1e-2
"""Relative residual above which the solver's result is refused."""

ARRIVED = 0.1
"""Share of the way that may be left at what is taken for a fixed point."""


@dataclass(frozen=True)
class Solver:
    """Conjugate gradients on the normal equations: when they stop."""

    rtol: float
    maxiter: int


@dataclass(frozen=True)
class _System:
    """An iteration and who solves for its derivative. No pytree: it rides through vmap as it is."""

    step: Step
    solver: Solver


@dataclass(frozen=True)
class Implicit:
    """See `implicit`."""

    solver: Solver

    def __call__(
        self, step: Step, steps: int, params: Params, start: Tensor, y: Tensor, center: Tensor
    ) -> Tensor:
        if y.is_floating_point():
            return with_soft_labels(self, step, steps, params, start, y, center)
        if torch.is_grad_enabled():
            require_all_given(step, params, start, y, center)
        leaves, spec = tree_flatten(params)
        system = _System(step, self.solver)
        end: Tensor = _Implicit.apply(system, steps, spec, start, y, center, *leaves)
        return end


def implicit(*, rtol: float = 1e-5, maxiter: int = 200) -> Derivative:
    """Build the derivative of the fixed point that an iteration has run into.

    Exact where x* no longer moves, biased by what is left to move where it does; the derivative
    in ``start`` is zero. Memory is that of a step's second derivative; costs one vjp and, for each
    iteration of the solver (conjugate gradients on the normal equations, at most ``maxiter``, until
    a relative residual of ``rtol``), a vjp and a jvp of one step; in forward mode (``jvp``)
    likewise, (I − ∂Φ/∂x) ẋ = ∂Φ/∂θ θ̇ + ∂Φ/∂c ċ. Nests under ``grad``, ``vjp``, ``jvp`` and
    ``vmap`` (one solve after the other); has no second derivative, and torch does not compile it.

    Raises `FuncrobustError` in the derivative where the solver does not get to a residual of 1e-2
    (a walk that still goes straight on has ∂Φ/∂x near I, and the system is singular), or where the
    next step shows that more than a tenth of the way may be left.
    """
    if not 0 < rtol <= ACCEPTED:
        raise FuncrobustError(f"rtol must be in (0, {ACCEPTED:g}], got {rtol}")
    require_count("maxiter", maxiter, minimum=1)
    return Implicit(Solver(rtol, maxiter))


class _Implicit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        of: _System, steps: int, spec: Any, start: Tensor, y: Tensor, center: Tensor,
        *leaves: Tensor,
    ) -> Tensor:  # fmt: skip
        return iterate(of.step, steps, tree_unflatten(leaves, spec), start, y, center).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system, _, ctx.spec, start, y, center, *leaves = inputs
        ctx.save_for_backward(output, start, y, center, *leaves)
        ctx.save_for_forward(output, start, y, center, *leaves)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        end, start, y, center, *leaves = ctx.saved_tensors
        _, _, _, _, _, *moved = tangents
        moved = [
            torch.zeros_like(at) if t is None else t
            for t, at in zip(moved, (center, *leaves), strict=True)
        ]
        found: Tensor = _Pushforward.apply(
            ctx.system, ctx.spec, end, start, y, center, *leaves, *moved
        )
        return found

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        end, start, y, center, *leaves = ctx.saved_tensors
        pulled = _Pullback.apply(ctx.system, ctx.spec, cotangent, end, start, y, center, *leaves)
        center_bar, *leaves_bar = pulled
        return None, None, None, torch.zeros_like(end), None, center_bar, *leaves_bar


def _solve(system: Callable[[Tensor], Tensor], right: Tensor, solver: Solver) -> Tensor:
    """Solve system(λ) = right by conjugate gradients on the normal equations, or raise."""
    if not right.any():
        return right
    lam: Tensor = solve_normal_cg(rtol=solver.rtol, maxiter=solver.maxiter)(system, right)
    # Example by example: in the norm of a whole batch a single lost one would hide.
    left, norm = (flat(t).norm(dim=1) for t in (system(lam) - right, right))
    residual = left / norm.clamp_min(torch.finfo(right.dtype).tiny)
    if not bool((left <= ACCEPTED * norm).all()):
        raise FuncrobustError(
            "the implicit derivative did not converge (relative residual "
            f"{float(residual.max()):.1g} in the worst of {len(right)} examples): "
            "psi is not near a fixed point; take more or smaller steps, or "
            "derivative=fr.adjoint()"
        )
    return lam


def _require_arrived(
    step: Tensor, end: Tensor, start: Tensor, center: Tensor, right: Tensor, solution: Tensor
) -> None:
    """Raise where the next step shows that an iteration is still on its way.

    What is left to go is e = (I − ∂Φ/∂x)⁻¹ (Φ(x) − x) to first order; seen along v it is
    ⟨v, e⟩/‖v‖ = ⟨λ, Φ(x) − x⟩/‖v‖, with the solution λ = (I − ∂Φ/∂x)⁻ᵀ v at hand. Its bound
    ‖λ‖·‖Φ(x) − x‖/‖v‖ is compared with the way from the start, or the centre if that is farther.
    Roundings of x itself are let pass.
    """
    size, far, away, last, v, lam = (
        flat(t).norm(dim=1) for t in (end, end - start, end - center, step, right, solution)
    )
    far = torch.maximum(far, away)
    gain = lam / v.clamp_min(torch.finfo(v.dtype).tiny)
    rounding = 100 * torch.finfo(v.dtype).eps * size
    left = gain * (last - rounding).clamp_min(0)
    if not bool((left <= ARRIVED * far).all()):
        share = float((left / far.clamp_min(torch.finfo(v.dtype).tiny)).max())
        raise FuncrobustError(
            f"psi is not near a fixed point: as the next step shows, up to {share:.0%} of the way "
            "is left in the worst example; take more steps, or derivative=fr.adjoint()"
        )


class _OneByOne(torch.autograd.Function):
    """A Function of tensors whose vmap solves one system after the other.

    How long a solver runs depends on its data.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # noqa: ARG004
        raise FuncrobustError("the implicit derivative has no second derivative: use fr.unrolled()")

    @classmethod
    def each(cls, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
        """Apply to each example of a batch."""

        def one(i: int) -> Any:
            picked = zip(inputs, in_dims, strict=True)
            return cls.apply(*(x if d is None else x.select(d, i) for x, d in picked))

        try:
            return [one(i) for i in range(info.batch_size)]
        except RuntimeError as error:
            if "batched == nullptr" not in str(error):
                raise
            raise FuncrobustError(
                "vmap maps over something that the iteration closes over (buffers, a mask), which "
                "fr.implicit() cannot follow: put it among params, or use fr.adjoint()"
            ) from error


class _Pushforward(_OneByOne):
    """(ċ, θ̇) ↦ ẋ."""

    @staticmethod
    def forward(
        of: _System, spec: Any, end: Tensor, start: Tensor, y: Tensor, center: Tensor,
        *both: Tensor,
    ) -> Tensor:  # fmt: skip
        n = (len(both) - 1) // 2
        leaves, moved = both[:n], both[n:]

        def advance(x: Tensor, center: Tensor, *leaves: Tensor) -> Tensor:
            return of.step(tree_unflatten(leaves, spec), x, y, center)

        def system(u: Tensor) -> Tensor:
            reduced: Tensor = u - jvp(lambda x: advance(x, center, *leaves), (end,), (u,))[1]
            return reduced

        pushed = jvp(partial(advance, end), (center, *leaves), tuple(moved))
        after, right = pushed[0], pushed[1]
        found = _solve(system, right, of.solver)
        _require_arrived(after - end, end, start, center, right, found)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return torch.stack(_Pushforward.each(info, in_dims, inputs)), 0


class _Pullback(_OneByOne):
    """v ↦ (c̄, θ̄); a Function of its own for the reasons given in `adjoint`."""

    @staticmethod
    def forward(
        of: _System, spec: Any, cotangent: Tensor, end: Tensor, start: Tensor, y: Tensor,
        center: Tensor, *leaves: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def advance(x: Tensor, center: Tensor, *leaves: Tensor) -> Tensor:
            return of.step(tree_unflatten(leaves, spec), x, y, center)

        after, through_x = vjp(lambda x: advance(x, center, *leaves), end)  # type: ignore[misc]

        def system(lam: Tensor) -> Tensor:
            reduced: Tensor = lam - through_x(lam)[0]
            return reduced

        lam = _solve(system, cotangent, of.solver)
        _require_arrived(after - end, end, start, center, cotangent, lam)
        _, pull = vjp(lambda c, *p: advance(end, c, *p), center, *leaves)  # type: ignore[misc]
        found: tuple[Tensor, ...] = pull(lam)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        found = _Pullback.each(info, in_dims, inputs)
        stacked = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
        return stacked, (0,) * len(stacked)
