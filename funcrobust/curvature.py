r"""CURE: curvature of the loss along a direction, by a finite difference of input gradients.

Moosavi-Dezfooli et al., CVPR 2019 (arXiv:1811.09716), section 4, in the form of the CURE document
(the norm, where the paper squares it), with g(x) = ∇ₓ ℓ(θ, x, y), per example:

    z = h · sign(g(x)) / ‖sign(g(x))‖₂
    L_r = ‖ g(x + z) − g(x) ‖₂

``h`` is a length in the units of the data, over the whole image: on a 3×32×32 image h = 3 moves
each pixel by 3/√3072 = 13.8/255.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.errors import FuncrobustError, require_finite
from funcrobust.functional import Params
from funcrobust.losses import Loss
from funcrobust.perturbations import constant, input_gradient

DIRECTIONS = ("classic", "random", "fgsm", "none")


def cure(
    loss: Loss, h: float = 3.0, *, direction: str = "classic", toward: Tensor | None = None
) -> Loss:
    """Build CURE's regulariser of ``loss``, a `Loss` itself: add λ times it to the objective.

    ``loss`` should be over an evaluation-mode `Predict`, as in the published code. ``direction``:

    - ``"classic"``: the formula above. Both gradients depend on θ; z is constant.
    - ``"random"``: z = (h/√d) · u with u = ``toward``, a tensor in [−1, 1] of x's shape: uniform
      in the cube that the classic z lies in a corner of (ε-cube: h = ε√d).
    - ``"fgsm"``: z = ``toward`` − x, a given adversarial point; the gradient at x is held constant
      and the squared norm is returned, as in the document's code (whose loss is the mean over a
      batch of B, so its λ is B² times one here). ``h`` is not used.
    - ``"none"``: zero.

    The document's code measures h, and λ, in inputs divided by their standard deviation σ: its
    h = 3, λ = 10 are about h = 0.74, λ = 2.5 here (σ = 0.25 on CIFAR-10). Taken as they stand in
    these units they keep a small network at chance level.

    Raises `FuncrobustError` for h negative or not finite, an unknown direction, or ``toward``
    missing or out of place.
    """
    require_finite("h", h)
    if direction not in DIRECTIONS:
        raise FuncrobustError(f"direction must be one of {', '.join(DIRECTIONS)}; got {direction}")
    if (toward is not None) != (direction in ("random", "fgsm")):
        raise FuncrobustError(
            "the tensor toward=... goes with the directions random and fgsm alone"
        )
    g = input_gradient(loss)

    def classic(params: Params, x: Tensor, y: Tensor) -> Tensor:
        g_x = g(params, x, y)
        return safe_norm(g(params, x + classic_direction(g_x, h), y) - g_x)

    def random(params: Params, x: Tensor, y: Tensor) -> Tensor:
        assert toward is not None
        z = toward * (h / x.shape[1:].numel() ** 0.5)
        return safe_norm(g(params, x + z, y) - g(params, x, y))

    def fgsm(params: Params, x: Tensor, y: Tensor) -> Tensor:
        assert toward is not None
        held = g(constant(params), x, y).detach()
        return (g(params, toward, y) - held).square().flatten(1).sum(1)

    def none(_params: Params, x: Tensor, _y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0])

    return {"classic": classic, "random": random, "fgsm": fgsm, "none": none}[direction]


def classic_direction(gradient: Tensor, h: float) -> Tensor:
    """Z = h · sign(g)/‖sign(g)‖₂ per example, constant; 0 where the gradient is 0."""
    sign = gradient.detach().sign()
    norm = sign.flatten(1).norm(dim=1).clamp_min(1.0).reshape(-1, *(1,) * (sign.ndim - 1))
    z: Tensor = h * sign / norm
    return z


def safe_norm(x: Tensor) -> Tensor:
    """‖x‖₂ per example, (B,), with derivative 0 rather than NaN where x = 0."""
    squared = x.square().flatten(1).sum(1)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
