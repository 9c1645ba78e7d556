"""How a network draws: by L2 steps as the ψ document does, or by ψ's gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import funcrobust as fr
from funcrobust.core.applications import generation
from funcrobust.running.restoring import fitting_step

MARKS = (1, 2, 3, 5, 8, 12, 16, 20)
"""Numbers of L2 steps after which images are scored: one walk, looked at on its way."""
WHOLE = (5, 10, 20, 100)
"""Numbers of gradient steps: each a walk of its own, of the same length in finer steps."""
CLAIMED = (5, 20)
"""Of those, the ones that every network is scored at on all images, chosen or not."""
REMAIN, GUIDANCE = 0.05, 0.3
"""What a walk of gradient steps leaves, and how much of log p_y it adds (`fr.logit`)."""
PART = 125
"""Images drawn together."""

Drawn = Iterator[tuple[int, Tensor]]
"""(steps, images in [0, 1]), in the order of the steps."""
Numbers = Collection[int]
"""Of steps, to score images after."""
Advance = Callable[[int], object]


Way = Callable[["Drawer", Tensor, Tensor, Numbers, Advance], Drawn]


class Drawer(NamedTuple):
    """A network that draws: what predicts in evaluation mode, and its parameters."""

    predict: fr.Predict
    params: fr.Params
    step: float | None = None
    """The one that its ψ restores with; None: what would fit the images."""


def l2_preset(images: Tensor) -> fr.Walk:
    """Return step size and radius for images (N, C, H, W): those of `apply generation`."""
    walk = generation.WALKS.of(tuple(images.shape[1:]))
    assert isinstance(walk, fr.Walk)
    return walk


def l2_walk(
    drawer: Drawer, starts: Tensor, wanted: Tensor, numbers: Numbers, advance: Advance
) -> Drawn:
    """L2 steps down the cross-entropy, in the bounds: the published way (Santurkar et al. 2019)."""
    walk = l2_preset(starts)
    loss, ball = fr.log_odds(drawer.predict), fr.l2(walk.radius)
    step = fr.gradient_step(loss, ball, step_size=walk.step_size, targeted=True)
    x = starts
    for t in range(1, max(numbers) + 1):
        parts = zip(x.split(PART), wanted.split(PART), starts.split(PART), strict=True)
        with torch.no_grad():
            x = torch.cat([step(drawer.params, a, y, c) for a, y, c in parts])
        advance(len(x))
        if t in numbers:
            yield t, x


def gradient_walks(
    drawer: Drawer, starts: Tensor, wanted: Tensor, numbers: Numbers, advance: Advance
) -> Drawn:
    """ψ's own steps, along the gradient of the logit with some guidance, as restoring ones draw."""
    loss = fr.logit(drawer.predict, guidance=GUIDANCE)
    full = drawer.step or fitting_step(tuple(starts.shape[1:]))
    for steps in sorted(numbers):
        psi = fr.generation(loss, fr.Restoring(steps, REMAIN, full))
        made = []
        for x, y in zip(starts.split(PART), wanted.split(PART), strict=True):
            with torch.no_grad():
                made.append(psi(drawer.params, x, y))
            advance(steps * len(x))
        yield steps, torch.cat(made)


WAYS: dict[str, tuple[Way, Callable[[Numbers], int]]] = {
    "L2": (l2_walk, max),  # one walk, looked at on its way
    "gradient": (gradient_walks, sum),
}
"""By name: the way, and how many steps it takes in all for some numbers of them."""


def every_number() -> dict[str, Numbers]:
    """Return the numbers of steps of every way, by its name."""
    return {"L2": MARKS, "gradient": WHOLE}


def claimed_and(way: str, steps: int) -> dict[str, Numbers]:
    """Return the numbers that are claimed of every network, and the one that was chosen for it."""
    numbers: dict[str, set[int]] = {"gradient": set(CLAIMED)}
    numbers.setdefault(way, set()).add(steps)
    return dict(numbers)
