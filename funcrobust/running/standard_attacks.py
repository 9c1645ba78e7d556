"""The two attacks of AutoAttack that are taken from its authors' code, as adversaries.

FAB-T (Croce & Hein 2020, arXiv:1907.02044) and Square in an L2 ball (Andriushchenko et al. 2020,
arXiv:1912.00049), through the package pyautoattack. Both get our prediction function, so that they
run in its memory format and precision; global random state is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import Adversary, Run
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import derive_seed

Logits = Callable[[Tensor], Tensor]


def fab_targeted(ball: Ball, *, targets: int = 9, steps: int = 100) -> Adversary:
    """Build FAB-T: the nearest image on the other side, toward each of the likeliest classes.

    Raises `FuncrobustError` for a ball that is neither `linf` nor `l2`, or without pyautoattack.
    """
    module = _module("fab_pt")
    norm = _norm(ball)
    radius = float(getattr(ball, "radius", 0.0))

    def build(logits: Logits, x: Tensor, classes: int, seed: int) -> Any:
        return module.FABAttack_PT(
            logits, norm=norm, n_restarts=1, n_iter=steps, eps=radius, seed=seed, targeted=True,
            device=x.device, n_target_classes=min(targets, classes - 1),
        )  # fmt: skip

    return _batched(build)


def square_l2(ball: L2, *, queries: int = 5000) -> Adversary:
    """Build the Square attack for an L2 ball. Its windows are one batch's, not an example's own."""
    module = _module("square")

    def build(logits: Logits, x: Tensor, _classes: int, seed: int) -> Any:
        return module.SquareAttack(
            logits, norm="L2", n_queries=queries, eps=ball.radius, p_init=0.8, n_restarts=1,
            seed=seed, device=x.device, resc_schedule=False,
        )  # fmt: skip

    return _batched(build)


def _batched(build: Callable[[Logits, Tensor, int, int], Any]) -> Adversary:
    def attack(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        found = []
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            images = x[rows].float().contiguous()
            with torch.no_grad():
                classes = predict(params, images[:1]).shape[-1]
            seed = derive_seed(run.seed, run.purpose, int(run.numbers[rows[0]])) % 2**31

            def logits(at: Tensor) -> Tensor:
                return predict(params, at).float()

            devices = [x.device] if x.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                moved = build(logits, images, classes, seed).perturb(images, y[rows])
            found.append(moved.to(x.dtype))
            run.advance(len(rows))
        return torch.cat(found) if found else x

    return attack


def _norm(ball: Ball) -> str:
    names: dict[type, str] = {Linf: "Linf", L2: "L2"}
    if type(ball) not in names:
        raise FuncrobustError(f"FAB is for an L-infinity or L2 ball, not {ball}")
    return names[type(ball)]


def _module(name: str) -> Any:
    try:
        return import_module(f"pyautoattack.{name}")
    except ImportError as error:
        raise FuncrobustError(
            "AutoAttack's FAB and Square come from pyautoattack: pip install funcrobust[autoattack]"
        ) from error
