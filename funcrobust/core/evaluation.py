"""Measuring a classifier: clean and robust accuracy, and the mean of any loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.images import as_float
from funcrobust.core.losses import Loss, odds_of
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict
from funcrobust.core.perturbations.steps import advance as advanced
from funcrobust.core.randomness import generator, key

Advance = Callable[[int], object]


def _ignore(_: int) -> None:
    pass


@torch.no_grad()
def correct(
    predict: Predict, params: Params, x: Tensor, y: Tensor, *, batch_size: int = 500
) -> Tensor:
    """Tell which examples are classified right: (N,) bool. x is uint8 or float in [0, 1]."""
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([predict(params, as_float(xb)).argmax(-1) == yb for xb, yb in batches])


def mean_of(loss: Loss, params: Params, x: Tensor, y: Tensor, *, batch_size: int = 128) -> float:
    """Average a loss over a set, in batches and without derivatives."""
    if len(x) == 0:
        raise FuncrobustError("there are no examples to average over")
    with torch.no_grad():
        batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return float(torch.cat([loss(params, as_float(xb), yb) for xb, yb in batches]).mean())


@torch.no_grad()
def recalibrated(
    model: Functional, params: Params, buffers: Buffers, batches: Iterable[Tensor]
) -> Buffers:
    """Return ``buffers`` with batch-norm statistics of ``params`` over some batches of images.

    The plain average over the batches of each batch's own statistics, as stochastic weight
    averaging does it (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). An average of weights
    has statistics of its own, and running ones lag behind weights that move fast.
    """
    sums: Buffers = {}
    moved: set[str] = set()  # not the constants of a normalisation, say: they stay to the bit
    count = 0
    for x in batches:
        masks = key(0, "recalibrate", count, x.device)
        _, after = model.predict_train(params, buffers, x, key=masks)
        own = model.batch_statistics(buffers, after)
        sums = {name: sums.get(name, 0.0) + b for name, b in own.items() if b.is_floating_point()}
        moved |= {name for name in sums if not torch.equal(own[name], buffers[name])}
        count += 1
    if count == 0:
        raise FuncrobustError("recalibration needs at least one batch")
    return buffers | {name: (sums[name] / count).to(buffers[name]) for name in moved}


class Pgd(NamedTuple):
    """PGD as an evaluation runs it: ``restarts`` counted random starts, ``steps`` steps each."""

    ball: Ball
    step_size: float
    steps: int = 20
    restarts: int = 1
    seed: int = 0


def robust(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    attack: Pgd,
    *,
    batch_size: int = 500,
    advance: Advance = _ignore,
) -> Tensor:
    """Tell which examples withstand PGD: (N,) bool.

    Each attack begins at a random point of the ball and ascends the cross-entropy, or rather its
    log-odds: the same steps, which confidence cannot round away. An example is lost if it is
    misclassified clean or at any iterate, and then spends nothing more: its attacks leave the
    batch, and others, of later examples and later restarts, take their rows. Each step's own
    logits tell, so that looking costs nothing. ``advance(n)`` is called with the count of attacks
    dealt with, restarts × N in all.
    """
    ball, step_size, steps, restarts, seed = attack
    require_count("steps", steps, minimum=1)
    require_count("restarts", restarts, minimum=1)
    require_finite("step_size", step_size)
    if len(x) == 0:
        raise FuncrobustError("there are no examples to evaluate")
    alive = correct(predict, params, x, y, batch_size=batch_size)
    draw = generator(seed, "evaluate", 0, x.device)

    def begin(index: Tensor) -> _Attacks:
        center = as_float(x[index])
        left = torch.full_like(index, steps)
        return _Attacks(index, left, ball.sample(center, draw), center, y[index])

    waiting = alive.nonzero().squeeze(1).repeat(restarts)
    advance(restarts * len(x) - len(waiting))
    attacks = begin(waiting[:0])
    while len(waiting) or len(attacks.example):
        room = batch_size - len(attacks.example)
        if room and len(waiting):
            taken, waiting = waiting[:room], waiting[room:]
            entering = taken[alive[taken]]
            advance(len(taken) - len(entering))
            attacks = attacks.joined_by(begin(entering))
        if before := len(attacks.example):
            attacks = _leg(predict, params, attacks, alive, ball, step_size)
            advance(before - len(attacks.example))
    return alive


class _Attacks(NamedTuple):
    """Attacks under way, a row each."""

    example: Tensor
    """Its number, (n,)."""
    left: Tensor
    """Steps to go, (n,)."""
    x: Tensor
    center: Tensor
    y: Tensor

    def rows(self, which: Tensor) -> _Attacks:
        return _Attacks(*(t[which] for t in self))

    def joined_by(self, other: _Attacks) -> _Attacks:
        return _Attacks(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


LEG = {"cpu": 1, "cuda": 10}
"""Steps between two clearings of the batch. On a GPU each clearing waits for the device."""


def _leg(
    predict: Predict,
    params: Params,
    attacks: _Attacks,
    alive: Tensor,
    ball: Ball,
    step_size: float,
) -> _Attacks:
    """Take a few steps of every attack; mark the fooled in ``alive``, return what goes on."""
    length = min(LEG.get(alive.device.type, 10), int(attacks.left.min()))
    x, stands = attacks.x, torch.ones_like(attacks.y, dtype=torch.bool)
    for _ in range(length):
        x, stood = _step(predict, params, x, attacks.y, attacks.center, ball, step_size)
        stands &= stood
    attacks = attacks._replace(x=x, left=attacks.left - length)
    ended = (attacks.left == 0).nonzero().squeeze(1)
    if len(ended):
        last = attacks.rows(ended)
        stands[ended] &= correct(predict, params, last.x, last.y, batch_size=len(ended))
    alive[attacks.example[~stands]] = False
    goes_on = alive[attacks.example] & (attacks.left > 0)
    return attacks if goes_on.all() else attacks.rows(goes_on.nonzero().squeeze(1))


def _step(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    center: Tensor,
    ball: Ball,
    step_size: float,
) -> tuple[Tensor, Tensor]:
    """One step of PGD, and which of the images it was given are classified right."""
    # Not torch.func.grad: it keeps the graph of its own backward pass, which nobody asks for here.
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = predict(params, x)
        (gradient,) = torch.autograd.grad(odds_of(logits, y).sum(), x)
    moved = advanced(ball, x.detach(), gradient, step_size, center)
    return moved, logits.detach().argmax(-1) == y
