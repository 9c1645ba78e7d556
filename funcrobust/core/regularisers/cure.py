r"""CURE: curvature of the loss along a direction, by a finite difference of input gradients.

Moosavi-Dezfooli et al., CVPR 2019 (arXiv:1811.09716), section 4, in the form of the CURE document
(the norm, where the paper squares it), with g(x) = ∇ₓ ℓ(θ, x, y), per example:

    z = h · sign(g(x)) / ‖sign(g(x))‖₂
    L_r = ‖ g(x + z) − g(x) ‖₂

``h`` is a length in the units of the data, over the whole image: on a 3×32×32 image h = 3 moves
each pixel by 3/√3072 = 13.8/255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._pytree import tree_map

from funcrobust.core.derivatives.iteration import constant
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.examples import flat, inner, per_example, safe_norm, squared_norm, unit
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.projected_gradient import input_gradient

DerivativeOfCure = Literal["shared", "batched", "forward", "central", "one-sided"]

Norm = Callable[[Loss, Params, Tensor, Tensor, Tensor], Tensor]
"""``(loss, params, x, z, y) -> (B,)``: ‖g(x + z) − g(x)‖₂, with some derivative in θ."""


def cure(
    loss: Loss,
    h: float | Tensor,
    *,
    along: Tensor | None = None,
    derivative: DerivativeOfCure = "shared",
) -> Loss:
    """Build CURE's regulariser of ``loss``, a `Loss` itself: add λ times it to the objective.

        ‖ g(x + z) − g(x) ‖₂,    g = ∇ₓ ℓ(θ, ·, y),    z = h·sign(g(x)) / ‖sign(g(x))‖₂

    How much the slope turns on a way of length h: Moosavi-Dezfooli et al. 2019 (arXiv:1811.09716),
    section 4, where it is squared. z is held constant. ``along`` (x's shape) gives its direction
    instead of the sign of the gradient: z = (h/√d)·``along``, which for a tensor uniform in [−1, 1]
    is the document's random direction, uniform in the cube that the usual z lies in a corner of
    (ε-cube: h = ε√d).

    ``derivative`` chooses how it is differentiated in θ. With u = Δ/‖Δ‖ constant, Δ = g(x + z) −
    g(x), the derivative is that of ⟨Δ, u⟩:

    - ``"shared"``: exact, by double backward; g(x) gives z and is subtracted too;
    - ``"batched"``: exact; z first, then one double backward over x and x + z as one batch;
    - ``"forward"``: exact; ⟨g(·), u⟩ is a jvp of the loss, so θ needs one reverse pass over it;
    - ``"central"``: first order only. ⟨g(p), u⟩ ≈ (ℓ(p + ηu) − ℓ(p − ηu))/2η at both points, with
      η the length of z (at least 1e-3): four losses an example, no second derivative. Error O(η²)
      for a smooth network; with ReLUs it sees the kinks within η, which a double backward does
      not, and differs from the others by more than half;
    - ``"one-sided"``: ``"central"`` with g(x) held constant: half the evaluations, and another
      regulariser: it leaves out a term that does not vanish with h.

    The value is the same for all where examples do not see one another. Where they do (batch norm
    by the batch's own statistics) x and x + z are two batches to ``"shared"`` and one to
    ``"batched"`` and ``"forward"``, whose value then is another: 0.601 for 0.690 was measured.

    z is a sign, and jumps in θ where an input gradient is exactly 0, as in networks whose residual
    branches start at zero. Only shared and batched have further derivatives (in x, or twice in θ).
    Measured costs and errors are in docs/recipes.md; ``benchmarks/cure_step.py`` measures them
    anew.

    ``h`` may be a 0-dim tensor, so that a schedule does not recompile. It is in the units of x. The
    document's code measures h, and λ, in inputs divided by their standard deviation σ: its h = 3,
    λ = 10 are about h = 0.74, λ = 2.5 here (σ = 0.25 on CIFAR-10). Taken as they stand in these
    units they keep a small network at chance level.

    All but ``"shared"`` evaluate the loss at x and x + z as one batch of 2B, so that it must not
    hold tensors of a batch (a start of an attack, a reference).

    Raises `FuncrobustError` for a number h negative or not finite, or an unknown derivative.
    """
    if not isinstance(h, Tensor):
        require_finite("h", h)
    if derivative not in get_args(DerivativeOfCure):
        known = ", ".join(get_args(DerivativeOfCure))
        raise FuncrobustError(f"derivative must be one of {known}; got {derivative!r}")
    g = input_gradient(loss)

    def shared(params: Params, x: Tensor, y: Tensor) -> Tensor:
        g_x = g(params, x, y)
        z = sign_direction(g_x, h) if along is None else _scaled(along, h)
        return safe_norm(g(params, x + z, y) - g_x)

    def split(params: Params, x: Tensor, y: Tensor) -> Tensor:
        if along is None:
            z = sign_direction(g(constant(params), x.detach(), y), h)
        else:
            z = _scaled(along, h)
        return _NORMS[derivative](loss, params, x, z, y)

    return shared if derivative == "shared" else split


def gradient_difference(loss: Loss, *, toward: Tensor) -> Loss:
    """Build ‖∇ₓℓ(θ, x̂, y) − ∇ₓℓ(θ, x, y)‖₂², x̂ = ``toward`` (x's shape), the gradient at x held.

    What the CURE document's code has under the names FGSM (x̂ an adversarial point) and linf (twice
    as far, x + 2(x̂ − x)). Its loss is the mean over a batch of B, so its λ is B² times one here.
    """
    g = input_gradient(loss)

    def penalty(params: Params, x: Tensor, y: Tensor) -> Tensor:
        held = g(constant(params), x, y).detach()
        return squared_norm(g(params, toward, y) - held)

    return penalty


def _batched(loss: Loss, params: Params, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    here, there = input_gradient(loss)(params, torch.cat([x, x + z]), torch.cat([y, y])).chunk(2)
    return safe_norm(there - here)


def _forward(loss: Loss, params: Params, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    value, unit = _difference(loss, params, x, z, y)
    points, units = torch.cat([x, x + z]), torch.cat([unit, unit])
    inside = _aliases(params)
    slopes: Tensor = jvp(lambda p: loss(inside, p, torch.cat([y, y])), (points,), (units,))[1]
    at_x, at_z = slopes.chunk(2)
    return _with_derivative(value, at_z - at_x)


def _central(loss: Loss, params: Params, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    value, unit = _difference(loss, params, x, z, y)
    twice = (torch.cat([t, t]) for t in (_length(z) * unit, _length(z), y))
    at_z, at_x = _slopes(loss, params, torch.cat([x + z, x]), *twice).chunk(2)
    return _with_derivative(value, at_z - at_x)


def _one_sided(loss: Loss, params: Params, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    value, unit = _difference(loss, params, x, z, y)
    at_z = _slopes(loss, params, x + z, _length(z) * unit, _length(z), y)
    return _with_derivative(value, at_z)


def _slopes(
    loss: Loss, params: Params, points: Tensor, step: Tensor, eta: Tensor, y: Tensor
) -> Tensor:
    """(ℓ(p + ηu) − ℓ(p − ηu))/2η at each point p, for the step ηu, in one batch."""
    both = torch.cat([points + step, points - step])
    inside = _aliases(params)
    ahead, behind = loss(inside, both, torch.cat([y, y])).chunk(2)
    return (ahead - behind) / (2 * eta.flatten())


def _aliases(params: Params) -> Params:
    """Other tensors of the same values: what a derivative evaluates moves no buffers (`Modes`)."""
    others: Params = tree_map(lambda p: p.view_as(p), params)
    return others


def _length(z: Tensor) -> Tensor:
    """‖z‖₂ of at least 1e-3, (B, 1, …, 1)."""
    return per_example(safe_norm(z), z).clamp_min(1e-3)


def _difference(
    loss: Loss, params: Params, x: Tensor, z: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """‖Δ‖₂ and Δ/‖Δ‖₂ (0 where Δ is), Δ = g(x + z) − g(x), all constant."""
    held = input_gradient(loss)(constant(params), torch.cat([x, x + z]).detach(), torch.cat([y, y]))
    here, there = held.detach().chunk(2)
    delta = there - here
    return safe_norm(delta), unit(delta)


def _with_derivative(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value of one, the derivative of the other."""
    return value + (surrogate - surrogate.detach())


def top_curvature(loss: Loss, *, iterations: int = 20) -> Loss:
    """Build the eigenvalue of the input Hessian ∇²ₓℓ largest in size, per example (B,), signed.

    By power iteration, one Hessian-vector product a step, from the gradient's own direction: what
    CURE drives down (the curvature profile of its paper, figure 1). A hundredth of a fixed
    direction is added, as the gradient may be an eigenvector, of 0 even. The estimate is a Rayleigh
    quotient, so its size is a lower bound. Costs ``iterations`` + 1 products, each like two input
    gradients; the result is for reading, and is constant in θ.
    """
    require_count("iterations", iterations, minimum=1)
    gradient = input_gradient(loss)

    def curvature(params: Params, x: Tensor, y: Tensor) -> Tensor:
        held, x = constant(params), x.detach()

        def hessian(v: Tensor) -> Tensor:
            product: Tensor = jvp(lambda point: gradient(held, point, y), (x,), (v,))[1]
            return product

        # Where there is no gradient, as at a minimum, what is added is all there is.
        v = unit(unit(gradient(held, x, y)) + 0.01 * unit(_anywhere(x)))
        for _ in range(iterations):
            v = unit(hessian(v))
        return inner(v, hessian(v)).detach()

    return curvature


def _anywhere(x: Tensor) -> Tensor:
    """Return a direction that no image has a reason to be orthogonal to: cos(n²) for number n."""
    count = torch.arange(x[:1].numel(), device=x.device, dtype=torch.float64)
    return torch.cos(count * count).to(x.dtype).reshape(x[:1].shape).expand_as(x)


def sign_direction(gradient: Tensor, h: float | Tensor) -> Tensor:
    """Z = h · sign(g)/‖sign(g)‖₂ per example, constant; 0 where the gradient is 0."""
    sign = gradient.detach().sign()
    norm = flat(sign).norm(dim=1).clamp_min(1.0)
    z: Tensor = h * sign / per_example(norm, sign)
    return z


def _scaled(along: Tensor, h: float | Tensor) -> Tensor:
    z: Tensor = along * (h / along.shape[1:].numel() ** 0.5)
    return z


_NORMS: dict[str, Norm] = {
    "batched": _batched, "forward": _forward, "central": _central, "one-sided": _one_sided,
}  # fmt: skip
