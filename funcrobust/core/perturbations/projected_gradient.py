r"""Perturbations: FGSM, PGD and ψ are one step function, iterated.

    x_{t+1} = Π_{B(c)} ( x_t ± α · steepest_B( ∇ₓ ℓ(θ, x_t, y) ) )

ascending the loss ℓ (+), or descending it toward the label y when targeted (−).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.func import grad

from funcrobust.core.arguments import require_ball, require_derivative, require_loss
from funcrobust.core.balls.ball import Ball
from funcrobust.core.derivatives.adjoint import adjoint
from funcrobust.core.derivatives.implicit import Implicit
from funcrobust.core.derivatives.iteration import Derivative, Step, unrolled
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.losses import Loss, per_example_loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.carried import best, carry, carrying_step, last
from funcrobust.core.perturbations.steps import advance, center_of


class Perturbation(Protocol):
    """``(params, start, y, *, center=None) -> x``; start (B, …), y (B,), as in `Loss`.

    ``center`` is where the ball lies, and defaults to ``start``; it should be inside the data
    bounds. Random starts are explicit: ``attack(params, ball.sample(x, generator), y, center=x)``.
    """

    def __call__(
        self, params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        """Perturb ``start``."""
        ...


def input_gradient(loss: Loss) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """``(params, x, y) -> ∇ₓ ℓ(θ, x, y)`` per example, shaped like x.

    Examples must not see one another (evaluation-mode batch norm): then the gradient of the sum
    is the stack of the per-example gradients.
    """
    require_loss(loss)

    def total(x: Tensor, params: Params, y: Tensor) -> Tensor:
        return per_example_loss(loss(params, x, y), x).sum()

    gradient = grad(total)
    return lambda params, x, y: gradient(x, params, y)


def gradient_step(loss: Loss, ball: Ball, *, step_size: float, targeted: bool = False) -> Step:
    """Build one step ``(params, x, y, center) -> x`` of the formula above."""
    gradient = input_gradient(loss)
    signed = -step_size if targeted else step_size

    def step(params: Params, x: Tensor, y: Tensor, center: Tensor) -> Tensor:
        return advance(ball, x, gradient(params, x, y), signed, center)

    return step


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
    ``use_best`` returns, per example, that x of x_0 … x_T whose loss is most extreme, the
    earlier one in a tie. The result has its derivative, as ψ's has: where it is to be a constant,
    `adversarial` makes it one, and so does ``.detach()``. To step in one norm inside the ball of
    another see `with_steps`.

    Raises `FuncrobustError` for a negative or non-finite step size or momentum, or negative steps.
    """
    walk = Iteration(step_size, steps, targeted, momentum, use_best)
    return _iterated(loss, ball, walk, unrolled())


def psi(
    loss: Loss,
    ball: Ball,
    *,
    step_size: float,
    steps: int,
    targeted: bool = False,
    derivative: Derivative | None = None,
    momentum: float = 0.0,
    use_best: bool = False,
) -> Perturbation:
    """Build ψ(x; θ): PGD from x on the classifier θ, meant to be differentiated in θ and in x.

    The options are those of `pgd`. ``derivative``
    chooses how the derivative is taken, never what ψ is: `adjoint`, the default (exact, memory flat
    in ``steps``), `unrolled` (exact to any order, memory of every step), `truncated` and `one_step`
    (the last steps alone), `implicit` (of the fixed point that ψ has run into), or a function of
    your own, a `Derivative`. All nest under ``torch.func`` ``grad``, ``vjp``, ``jvp`` and ``vmap``;
    only `unrolled` has a second reverse derivative.

    What ``loss`` closes over (buffers, a mask, a temperature) must be constant to the adjoint, see
    there. To have the derivative in it put it among ``params``: a network's `Predict` ignores a
    name it does not know (without dots, which would mean a submodule). The derivative in the step
    size is `unrolled`'s.

    Prefer a network with a smooth activation. With ReLU ψ is piecewise smooth in θ in very small
    pieces: its derivative is exact in each (to finite differences of 1e-6), and can point the other
    way over the length of an update. With SiLU derivative and difference agree at every length.

    Raises `FuncrobustError` for a ball whose steepest direction has zero derivative (L∞).
    """
    require_ball(ball)
    if not ball.differentiable:
        raise FuncrobustError(
            f"psi over {type(ball).__name__} has a zero derivative: its steps are signs, or it "
            "says differentiable = False. Use an L2 ball, fr.l2(radius), fr.unconstrained() or "
            "fr.smooth_linf(radius)"
        )
    if derivative is not None:
        require_derivative(derivative)
    walk = Iteration(step_size, steps, targeted, momentum, use_best)
    return _iterated(loss, ball, walk, adjoint() if derivative is None else derivative)


class Iteration(NamedTuple):
    """What PGD and ψ are told: see `pgd`."""

    step_size: float
    steps: int
    targeted: bool = False
    momentum: float = 0.0
    use_best: bool = False


def _iterated(loss: Loss, ball: Ball, walk: Iteration, derivative: Derivative) -> Perturbation:
    require_ball(ball)
    require_finite("step_size", walk.step_size)
    require_finite("momentum", walk.momentum)
    require_count("steps", walk.steps)
    sign = -1.0 if walk.targeted else 1.0
    size = sign * walk.step_size
    plain = not (walk.momentum or walk.use_best)
    if plain:
        step = gradient_step(loss, ball, step_size=walk.step_size, targeted=walk.targeted)
    else:
        _refuse_fixed_points(derivative)
        step = carrying_step(loss, ball, size=size, momentum=walk.momentum, sign=sign)

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        center = center_of(ball, start, center)
        if plain:
            return derivative(step, walk.steps, params, start, y, center)
        if start.ndim < 2:
            raise FuncrobustError("momentum and use_best take x (B, d): unsqueeze(1) numbers (B,)")
        if walk.use_best:
            start = ball.project(start, center)  # or the best of all could lie outside
        state = derivative(step, walk.steps, params, carry(start), y, center)
        c = start.shape[1]
        return best(loss, params, state, y, c, sign) if walk.use_best else last(state, c)

    return perturb


def _refuse_fixed_points(derivative: Derivative) -> None:
    if isinstance(derivative, Implicit):
        raise FuncrobustError(
            "fr.implicit() is for plain steps: momentum and use_best have no fixed point"
        )
