"""Square in an L2 ball, from its authors' code, as an adversary.

Andriushchenko et al. 2020 (arXiv:1912.00049), algorithm 3, through the package pyautoattack. It
gets our prediction function, so that it runs in its memory format and precision; global random
state is left as it was.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.balls.l2 import L2
from funcrobust.core.errors import extra
from funcrobust.core.evaluation import Adversary, Run
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import derive_seed


def l2_square(ball: L2, *, queries: int = 5000) -> Adversary:
    """Build the Square attack for an L2 ball. Its windows are one batch's, not an example's own.

    Raises `FuncrobustError` where pyautoattack is not installed.
    """
    module = _module()

    def attack(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        def logits(at: Tensor) -> Tensor:
            return predict(params, at).float()

        found = []
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            seed = derive_seed(run.seed, run.purpose, int(run.numbers[rows[0]])) % 2**31
            theirs = module.SquareAttack(
                logits, norm="L2", n_queries=queries, eps=ball.radius, p_init=0.8, n_restarts=1,
                seed=seed, device=x.device, resc_schedule=False,
            )  # fmt: skip
            devices = [x.device] if x.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                moved = theirs.perturb(x[rows].float().contiguous(), y[rows])
            found.append(moved.to(x.dtype))
            run.advance(len(rows))
        return torch.cat(found) if found else x

    return attack


def _module() -> Any:
    with extra("autoattack", "Square in an L2 ball comes from pyautoattack"):
        return import_module("pyautoattack.square")
