r"""Perturbations: FGSM, PGD and ψ are one step function, iterated.

    x_{t+1} = Π_{B(c)} ( x_t ± α · steepest_B( ∇ₓ ℓ(θ, x_t, y) ) )

ascending the loss ℓ (+), or descending it toward the label y when targeted (−).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor
from torch.func import grad

from funcrobust.core.balls.ball import Ball
from funcrobust.core.derivatives.adjoint import Step, iterate, iterate_adjoint
from funcrobust.core.derivatives.implicit import iterate_implicit
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.carried import best, carry, carrying_step, last


class Perturbation(Protocol):
    """``(params, start, y, *, center=None) -> x``; images (B, C, H, W), y (B,), as in `Loss`.

    ``center`` is where the ball lies, and defaults to ``start``; it should be inside the data
    bounds. Random starts are explicit: ``attack(params, ball.sample(x, generator), y, center=x)``.
    """

    def __call__(
        self, params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        """Perturb ``start``."""
        ...


PerturbationOf = Callable[[Loss], Perturbation]
"""Builds a perturbation on a loss: ``lambda loss: fr.fgsm(loss, ball, step_size=10 / 255)``."""


def input_gradient(loss: Loss) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """``(params, x, y) -> ∇ₓ ℓ(θ, x, y)`` per example, shaped like x.

    Examples must not see one another (evaluation-mode batch norm): then the gradient of the sum
    is the stack of the per-example gradients.
    """

    def total(x: Tensor, params: Params, y: Tensor) -> Tensor:
        return loss(params, x, y).sum()

    gradient = grad(total)
    return lambda params, x, y: gradient(x, params, y)


def gradient_step(loss: Loss, ball: Ball, *, step_size: float, targeted: bool = False) -> Step:
    """Build one step ``(params, x, y, center) -> x`` of the formula above."""
    gradient = input_gradient(loss)
    signed = -step_size if targeted else step_size

    def step(params: Params, x: Tensor, y: Tensor, center: Tensor) -> Tensor:
        return stepped(ball, x, gradient(params, x, y), signed, center)

    return step


def stepped(ball: Ball, x: Tensor, gradient: Tensor, size: float, center: Tensor) -> Tensor:
    """Π(x + size · steepest(gradient)), or the ball's own ``advance`` in place of the sum."""
    advance = getattr(ball, "advance", None)
    if advance is not None:
        return ball.project(advance(x, gradient, size), center)
    return ball.project(x + size * ball.steepest(gradient), center)


def fgsm(loss: Loss, ball: Ball, *, step_size: float, targeted: bool = False) -> Perturbation:
    """Build the fast gradient sign method: one projected step.

    From ``start = x`` it is FGSM (Goodfellow et al. 2015, arXiv:1412.6572); from
    ``ball.sample(x, generator)`` with ``center=x`` it is the random-start RS-FGSM of fast
    adversarial training (Wong et al. 2020, arXiv:2001.03994, α = 10/255 for ε = 8/255).
    """
    return pgd(loss, ball, step_size=step_size, steps=1, targeted=targeted)


def pgd(
    loss: Loss,
    ball: Ball,
    *,
    step_size: float,
    steps: int,
    targeted: bool = False,
    momentum: float = 0.0,
    use_best: bool = False,
) -> Perturbation:
    """Build projected gradient descent (Madry et al. 2018, arXiv:1706.06083).

    ``step_size`` is in units of the data; 0 steps return the start as it is. ``momentum`` μ > 0
    steps along v ← μ·v + ∇ₓℓ/‖∇ₓℓ‖₁ (MI-FGSM over `linf`, Dong et al. 2018, μ = 1 there).
    ``use_best`` returns, per example, that image of x_0 … x_T whose loss is most extreme, the
    earlier one in a tie. To step in one norm inside the ball of another see `with_steps`.

    Raises `FuncrobustError` for a negative or non-finite step size or momentum, or negative steps.
    """
    return _iterated(loss, ball, step_size, steps, targeted, "unroll", momentum, use_best)


def psi(
    loss: Loss,
    ball: Ball,
    *,
    step_size: float,
    steps: int,
    targeted: bool = False,
    backward: str = "adjoint",
    momentum: float = 0.0,
    use_best: bool = False,
) -> Perturbation:
    """Build ψ(x; θ): PGD from x on the classifier θ, meant to be differentiated in θ and in x.

    The options are those of `pgd`. ``backward`` chooses how the derivative is taken, never what ψ
    is:

    - ``"adjoint"``: exact first derivatives, memory flat in ``steps`` (see `adjoint`):
      T = ``steps`` vjps of one step, each with one more evaluation of it;
    - ``"segmented"``: the adjoint that keeps about 2√T images: T vjps, two more evaluations each;
    - ``"unroll"``: plain reverse mode through every step: exact to any order, T vjps and no
      evaluation more, memory of T steps;
    - ``"truncated:k"``, k ≥ 1: the adjoint of the last k steps, the iterate before them held
      constant: k vjps; biased by all that reaches the end through that iterate, so that the start
      has no derivative (Shaban et al. 2019, arXiv:1810.10667);
    - ``"one_step"``: ``"truncated:1"``, one vjp (Bolte et al. 2023, arXiv:2305.13768);
    - ``"implicit"``: the derivative of the fixed point that ψ has run into, whatever the steps (see
      `implicit`): one vjp and up to 200 pairs of vjp and jvp; exact there, biased by
      what is left to move elsewhere; it raises where the linear system has no solution to be found.

    All nest under ``torch.func`` ``grad``, ``vjp``, ``jvp`` and ``vmap``; only unroll has a second
    derivative.

    What ``loss`` closes over (buffers, a mask, a temperature) is constant to the adjoint, and must
    not be an argument of the transformed function: see `funcrobust.iterate_adjoint`. To have the
    derivative in it put it among ``params``: a network's `Predict` ignores a name it does not
    know (without dots, which would mean a submodule).

    Prefer a network with a smooth activation. With ReLU ψ is piecewise smooth in θ in very small
    pieces: its derivative is exact in each (to finite differences of 1e-6), and can point the other
    way over the length of an update. With SiLU derivative and difference agree at every length.

    Raises `FuncrobustError` for a ball whose steepest direction has zero derivative (L∞).
    """
    if not ball.differentiable:
        raise FuncrobustError(
            f"psi over {type(ball).__name__} has a zero derivative: sign() is flat. "
            "Use an L2 ball, fr.l2(radius), fr.unconstrained() or fr.smooth_linf(radius)"
        )
    return _iterated(loss, ball, step_size, steps, targeted, backward, momentum, use_best)


def _iterated(
    loss: Loss,
    ball: Ball,
    step_size: float,
    steps: int,
    targeted: bool,
    backward: str,
    momentum: float,
    use_best: bool,
) -> Perturbation:
    require_finite("step_size", step_size)
    require_finite("momentum", momentum)
    require_count("steps", steps)
    if not (momentum or use_best):
        step = gradient_step(loss, ball, step_size=step_size, targeted=targeted)
        return _walk(step, steps, backward)
    if backward == "implicit":
        raise FuncrobustError(
            'backward="implicit" is for plain steps: momentum and use_best have no fixed point'
        )
    sign = -1.0 if targeted else 1.0
    step = carrying_step(loss, ball, stepped, size=sign * step_size, momentum=momentum, sign=sign)
    walk = _walk(step, steps, backward)

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        _require_float(start)
        c = start.shape[1]
        state = walk(params, carry(start), y, center=start if center is None else center)
        return best(loss, params, state, y, c, sign) if use_best else last(state, c)

    return perturb


def _walk(step: Step, steps: int, backward: str) -> Perturbation:
    """``steps`` steps, differentiated as ``backward`` says."""
    differentiable_from = _first_differentiated(backward, steps)
    rest: Callable[..., Tensor] = iterate_adjoint
    if backward == "segmented":
        rest = partial(iterate_adjoint, every=max(1, round(steps**0.5)))
    elif backward in ("unroll", "implicit"):
        rest = iterate if backward == "unroll" else iterate_implicit

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        _require_float(start)
        center = start if center is None else center
        x = start
        if differentiable_from:
            x = iterate(
                step, differentiable_from, constant(params), x.detach(), y, center.detach()
            ).detach()
        return rest(step, steps - differentiable_from, params, x, y, center)

    return perturb


def _require_float(start: Tensor) -> None:
    if not start.is_floating_point():
        raise FuncrobustError(f"images must be floats in [0, 1], got {start.dtype}: divide by 255")


def _first_differentiated(backward: str, steps: int) -> int:
    """Return the step from which the derivative is taken."""
    if backward in ("adjoint", "segmented", "unroll", "implicit"):
        return 0
    if backward == "one_step":
        return max(0, steps - 1)
    kind, _, k = backward.partition(":")
    if kind == "truncated" and re.fullmatch("[1-9][0-9]*", k):
        return max(0, steps - int(k))
    raise FuncrobustError(
        'backward must be "adjoint", "segmented", "unroll", "implicit", "one_step" or '
        f'"truncated:k" with k >= 1, got {backward!r}'
    )


def constant(params: Params) -> Params:
    """Return the same tensors, cut from every derivative."""
    return {name: p.detach() for name, p in params.items()}
