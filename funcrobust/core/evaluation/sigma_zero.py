r"""σ-zero: an adversary that changes as few numbers of an image as it can.

Cinà et al. 2024 (arXiv:2402.01879), algorithm 1: from δ = 0 it descends, by Adam on gradients
divided by their largest entry,

    max(z_y − max_{j≠y} z_j, 0)  +  1/d · Σᵢ δᵢ²/(δᵢ² + σ)

and after each step sets to 0 the entries with |δᵢ| < τ. τ rises while the image fools the network
and falls while it does not. Of what fools it, the image with the fewest changes is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcrobust.core.errors import require_count
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.evaluation.slopes import gradient_of
from funcrobust.core.examples import flat, per_example
from funcrobust.core.losses import own_and_others
from funcrobust.core.network.functional import Params, Predict

SMOOTHING = 1e-3
"""σ; this and the numbers below are the paper's."""
STEP, LAST_STEP = 1.0, 0.1
THRESHOLD, CHANGE = 0.3, 0.01
"""τ at the start, and what is added to it or taken from it, in steps."""


def sigma_zero(*, steps: int = 300) -> Adversary:
    """Build σ-zero for images in [0, 1]: ``steps`` passes forward and back for each image."""
    require_count("steps", steps, minimum=1)

    def attack(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            found[rows] = _descend(predict, params, x[rows], y[rows], steps, run)
        return found

    return attack


def _descend(
    predict: Predict, params: Params, x: Tensor, y: Tensor, steps: int, run: Run
) -> Tensor:
    delta, best = torch.zeros_like(x), x.clone()
    fewest = x.new_full((len(x),), torch.inf)
    threshold = x.new_full((len(x),), THRESHOLD)
    first, second = torch.zeros_like(x), torch.zeros_like(x)  # Adam's moments
    step = STEP
    for i in range(steps):
        gradient, fooled = _slope(predict, params, x, delta, y)
        changed = flat(delta != 0).sum(1)
        better = fooled & (changed < fewest)
        fewest = torch.where(better, changed.to(fewest), fewest)
        best = torch.where(per_example(better, x), x + delta, best)
        first = first.lerp(gradient, 0.1)
        second = second.lerp(gradient.square(), 0.001)
        spread = (second / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8
        delta = delta - step * first / (1 - 0.9 ** (i + 1)) / spread
        delta = (x + delta).clamp(0, 1) - x
        step = STEP * (LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * i / steps)) / 2)
        threshold = (threshold + torch.where(fooled, CHANGE, -CHANGE) * step).clamp(0, 1)
        delta = torch.where(delta.abs() < per_example(threshold, x), 0.0, delta)
        run.advance(len(x) * (i + 1) // steps - len(x) * i // steps)
    return best.clamp(0, 1)


def _slope(
    predict: Predict, params: Params, x: Tensor, delta: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient in δ, its largest entry 1, and who is misclassified at x + δ."""
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        logits = predict(params, x + delta).to(x.dtype)
        own, others = own_and_others(logits, y)
        square = delta.square()
        few = flat(square / (square + SMOOTHING)).mean(1)
        gradient = gradient_of(((own - others.amax(-1)).clamp_min(0) + few).sum(), delta)
    largest = flat(gradient.abs()).amax(1).clamp_min(1e-12)
    return gradient / per_example(largest, x), logits.detach().argmax(-1) != y
