"""The adversaries that ``evaluate`` runs, by the names of its options."""

from __future__ import annotations

import torch

from funcrobust.commands.evaluate.options import OWN, Evaluate
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.l2 import L2
from funcrobust.core.balls.linf import Linf
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import (
    Adversary,
    Pgd,
    adversary_of,
    apgd_adversary,
    sharp_pgd,
    square,
    targeted_apgd,
)
from funcrobust.core.evaluation.adversaries import SHARPNESS
from funcrobust.core.evaluation.drafting import Drafted
from funcrobust.core.losses import log_odds
from funcrobust.core.network.functional import autocast
from funcrobust.core.perturbations.steps import share_of, step_length
from funcrobust.running.catalogue import functions
from funcrobust.running.l2_square import l2_square
from funcrobust.running.machine import pick_dtype


def adversaries(
    options: Evaluate, ball: Ball, classes: int, device: torch.device
) -> dict[str, Adversary]:
    """Return what is to be run, in order, by the name to show."""
    found = (
        autoattack(ball, classes) if options.autoattack else {title(options): one(options, ball)}
    )
    if options.search is None:
        return found
    dtype = pick_dtype(options.search, device)
    if dtype == pick_dtype(options.precision, device):  # by auto: another machine may differ
        return found
    if dtype is None:
        raise FuncrobustError("--search fp32 beside --precision bf16: the network is in bf16")
    return {name: in_half(each, dtype, options.target is not None) for name, each in found.items()}


def in_half(adversary: Adversary, dtype: torch.dtype, targeted: bool = False) -> Adversary:
    """Let an adversary search on the network in half precision."""
    return Drafted(adversary, lambda predict: autocast(predict, dtype), targeted)


def title(options: Evaluate) -> str:
    """Return the attack's name as the field writes it: PGD-50-10 is 50 steps, 10 restarts."""
    name, restarts = options.attack, options.asked_restarts
    written = OWN[name].written if name in OWN else name
    if name in ("pgd", "sharp-pgd"):
        return f"{written}-{options.asked_steps}" + (f"-{restarts}" if restarts > 1 else "")
    said = ([f"{options.steps} steps"] if options.steps else []) + (
        [f"x{options.restarts}"] if options.restarts else []
    )
    return " ".join([written, *said])


def one(options: Evaluate, ball: Ball) -> Adversary:
    """Return the attack that ``--attack`` names."""
    name, restarts, targeted = options.attack, options.asked_restarts, options.target is not None
    if name not in OWN:
        given = {"ball": ball, "steps": options.steps, "step_size": options.step_size}
        return adversary_of(
            functions("core", "Attack")[name].called(**given), log_odds, restarts=restarts
        )
    steps, size = options.asked_steps or 0, step_size(options, ball)
    if name == "sharp-pgd":
        sharpness = [SHARPNESS[r % len(SHARPNESS)] for r in range(restarts)]
        return sharp_pgd(ball, step_size=size, steps=steps, sharpness=sharpness, targeted=targeted)
    if name == "pgd":
        return Pgd(ball, size, steps, restarts, targeted=targeted)
    if name == "square":
        if not isinstance(ball, Linf):
            raise FuncrobustError("--attack square is for --constraint linf; see --autoattack")
        return square(ball, queries=steps)
    if name == "apgd-t" and not targeted:
        return targeted_apgd(ball, steps=steps)
    ratio = name != "apgd-ce"
    return apgd_adversary(ball, steps=steps, restarts=restarts or 1, ratio=ratio, targeted=targeted)


def stronger(options: Evaluate, ball: Ball) -> Adversary:
    """Return sharp PGD at sharpness 20 and 5: thrice the steps of pgd and sharp-pgd, else 60."""
    steps = 3 * (options.asked_steps or 20) if options.attack in ("pgd", "sharp-pgd") else 60
    return sharp_pgd(
        ball, step_size=step_size(options, ball, steps), steps=steps, sharpness=(20.0, 5.0),
        targeted=options.target is not None,
    )  # fmt: skip


def step_size(options: Evaluate, ball: Ball, steps: int | None = None) -> float:
    """Return the length of one of ``steps`` plain steps, the attack's own number unless given."""
    share = share_of(steps or options.asked_steps or 20)
    return step_length(options.step_size, ball, share)


def recorded_step_size(options: Evaluate, ball: Ball) -> float | None:
    """Return the step size that the attack takes; of one with its own, what was said, or None."""
    own = None if options.autoattack else OWN.get(options.attack)
    return step_size(options, ball) if own is not None and own.sized else options.step_size


def autoattack(ball: Ball, classes: int) -> dict[str, Adversary]:
    """Build the standard ensemble; of an L2 ball with the authors' own Square."""
    last = l2_square(ball) if type(ball) is L2 else None
    return evaluation.autoattack(ball, classes=classes, last=last)
