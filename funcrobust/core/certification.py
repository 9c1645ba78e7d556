"""Randomised smoothing: a radius within which no attack of any kind changes the prediction.

The smoothed classifier g of a network f predicts what f most probably sees in a noisy image,

    g(x) = argmax_c P[f(x + ε) = c],  ε ~ N(0, σ²I).

Where the class c has a probability of at least p̲ > 1/2, g(x + δ) = c for all ‖δ‖₂ < σΦ⁻¹(p̲)
(Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918, Theorem 1 with p̄_B = 1 − p̲_A). The probability is
estimated by sampling, so that each statement may be wrong, with a probability of at most α.

The noise is a sample of `random_smoothing`, the threat model to train f with: a network that has
never seen such noise has a g that certifies little. Noisy images are not clamped to the data
bounds, as in the paper: clamped noise is no longer Gaussian to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.smoothing import random_smoothing
from funcrobust.core.binomial import even_chance, lower_bound
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.images import as_float
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import generator

ABSTAINS = -1
"""The label where a smoothed classifier does not say any."""

BLOCK = 16
"""Noisy copies drawn at a time, whatever the batch: the numbers must not depend on it."""


class Certified(NamedTuple):
    """What `certify` found, for each of B examples."""

    label: Tensor
    """The smoothed classifier's class, int64 (B,); -1 where it abstains."""
    radius: Tensor
    """The L2 radius within which that is its class, in units of x, float64 (B,); 0 where it
    abstains."""
    counts: Tensor
    """How many of the n noisy copies the network put into each class, int64 (B, C)."""


def certify(
    predict: Predict,
    params: Params,
    x: Tensor,
    *,
    sigma: float,
    n: int,
    n0: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda _: None,
) -> Certified:
    """Certify the smoothed classifier's prediction on x (B, ...): CERTIFY of the paper.

    ``n0`` noisy copies of an example choose its class c; ``n`` others, k of which the network puts
    into c, bound its probability: p̲ is Clopper and Pearson's lower bound, with confidence 1 − α.
    The radius is σΦ⁻¹(p̲); where p̲ ≤ 1/2 it abstains. Each example's radius is too large with a
    probability of at most α. The paper has n = 100 000; no n certifies more than `largest_radius`.

    ``sigma`` is in units of x, which is float, or bytes that are divided by 255. The noise of a
    copy is a function of (seed, the example's place in x, the copy's number), so the result does
    not depend on ``batch_size``, the copies of a forward pass; what is left is how a network
    rounds. ``advance(m)`` is called after every m of the B·(n0 + n) copies.

    Raises `FuncrobustError` for σ that is not positive, α outside (0, 1), an n that can certify
    nothing at this α, no examples, or logits that are not (B, C) with C ≥ 2.
    """
    require_count("n0", n0, minimum=1)
    largest_radius(sigma, n, alpha)  # raises where there is none
    sample = _Sampler(predict, params, x, sigma, seed, batch_size, advance)
    label = sample.counts(n0, "certify/choose").argmax(-1)
    counts = sample.counts(n, "certify/bound")
    p = lower_bound(counts.gather(1, label.unsqueeze(1)).squeeze(1), n, alpha)
    certain = p > 0.5
    radius = torch.where(certain, _radius(sigma, p), 0.0)
    return Certified(label.where(certain, ABSTAINS), radius, counts)


def predict_smoothed(
    predict: Predict,
    params: Params,
    x: Tensor,
    *,
    sigma: float,
    n: int,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Return the smoothed classifier's class for x (B, ...): int64 (B,), -1 where it abstains.

    PREDICT of the paper: the class that the network sees most often in ``n`` noisy copies, unless
    a fair coin might as well have decided between it and the runner-up (a two-sided binomial test
    at α). A class that is said is not g's with a probability of at most α (Proposition 1). The
    class need not have half of all copies, but there is no radius. The arguments and errors are
    `certify`'s.
    """
    sample = _Sampler(predict, params, x, sigma, seed, batch_size, advance)
    _require_confidence(alpha)
    require_count("n", n, minimum=1)
    return predicted(sample.counts(n, "predict"), alpha)


def predicted(counts: Tensor, alpha: float) -> Tensor:
    """Return what PREDICT says after ``counts`` (B, C) of a sample: int64 (B,), or -1."""
    _require_confidence(alpha)
    (most, second), (label, _) = (t.unbind(-1) for t in counts.topk(2))
    return label.where(even_chance(most, second) <= alpha, ABSTAINS)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """Return the radius of n copies all in one class, σΦ⁻¹(α^{1/n}): no sample certifies more.

    It grows like σ·√(2 log n). Raises `FuncrobustError` where n certifies nothing at this α, and
    for values out of range.
    """
    _require_sigma(sigma)
    _require_confidence(alpha)
    require_count("n", n, minimum=1)
    radius = float(_radius(sigma, lower_bound(torch.tensor(n), n, alpha)))
    if radius <= 0:
        raise FuncrobustError(
            f"{n} samples can certify nothing at alpha = {alpha:g}, whatever the network says: "
            "take more"
        )
    return radius


def certified_accuracy(radius: Tensor, correct: Tensor, at: Sequence[float]) -> Tensor:
    """Return the share of examples that are right and certified at each of R radii: float64 (R,).

    ``radius`` (B,) is `Certified`'s, ``correct`` (B,) whether its label is the true one: so it is
    false where it abstains. ``at`` are the R radii, at least 0. At radius 0 that is the accuracy of
    what is certified at all.

    Raises `FuncrobustError` unless ``radius`` and ``correct`` are of one shape (B,), B at least 1,
    and ``correct`` is bool.
    """
    if radius.shape != correct.shape or radius.ndim != 1 or len(radius) == 0:
        raise FuncrobustError(
            "radius and correct must be one number an example, got shapes "
            f"{tuple(radius.shape)} and {tuple(correct.shape)}"
        )
    if correct.dtype != torch.bool:
        raise FuncrobustError(f"correct is a bool an example, label == y, not {correct.dtype}")
    least = torch.as_tensor(at, dtype=radius.dtype, device=radius.device).reshape(-1, 1)
    return ((radius >= least) & correct).double().mean(1)


def _radius(sigma: float, p: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(p)
    return sigma * quantile


def _require_sigma(sigma: float) -> None:
    if require_finite("sigma", sigma) == 0:
        raise FuncrobustError("sigma must be positive: without noise nothing is certified")


def _require_confidence(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise FuncrobustError(f"alpha must be in (0, 1), got {alpha}")


class _Sampler:
    """SAMPLEUNDERNOISE of the paper, for all examples of x."""

    def __init__(
        self, predict: Predict, params: Params, x: Tensor, sigma: float, seed: int,
        batch_size: int, advance: Callable[[int], object],
    ) -> None:  # fmt: skip
        _require_sigma(sigma)
        require_count("batch_size", batch_size, minimum=1)
        if len(x) == 0:
            raise FuncrobustError("there are no examples to classify: x is empty")
        self.predict, self.params, self.x = predict, params, x
        self.noise, self.seed = random_smoothing(sigma), seed
        self.batch_size, self.advance = batch_size, advance

    @torch.no_grad()
    def counts(self, n: int, purpose: str) -> Tensor:
        """Count the classes of n noisy copies of each example: (B, C)."""
        return torch.stack([self._counts(i, n, purpose) for i in range(len(self.x))])

    def _counts(self, example: int, n: int, purpose: str) -> Tensor:
        batches = []
        for first in range(0, n, self.batch_size):
            last = min(first + self.batch_size, n)
            copies = self._noisy(example, first, last, purpose)
            logits = self.predict(self.params, copies)
            if logits.ndim != 2 or len(logits) != len(copies) or logits.shape[1] < 2:
                raise FuncrobustError(
                    f"the network gives {tuple(logits.shape)} for {len(copies)} examples: to "
                    "certify takes logits (B, C) of at least two classes"
                )
            seen = logits.argmax(1)[~logits.isnan().any(1)]  # NaN is a vote for no class
            batches.append(torch.bincount(seen, minlength=logits.shape[1]))
            self.advance(len(copies))
        return torch.stack(batches).sum(0)

    def _noisy(self, example: int, first: int, last: int, purpose: str) -> Tensor:
        """Return the copies from ``first`` up to ``last``, of those that this purpose has."""
        x = as_float(self.x[example])
        many = x.expand(BLOCK, *x.shape)
        blocks = range(first // BLOCK, (last - 1) // BLOCK + 1)
        draws = (generator(self.seed, f"{purpose}/{example}", block, x.device) for block in blocks)
        copies = torch.cat([self.noise.sample(many, draw) for draw in draws])
        return copies[first - BLOCK * blocks.start :][: last - first]
