"""From ``cure-train``'s flags to the operators they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from funcrobust.core import attacks
from funcrobust.core.attacks import Attack
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.losses import Loss, cross_entropy
from funcrobust.core.objectives import algebra as objectives
from funcrobust.core.regularisers import linearity
from funcrobust.core.regularisers.cure import BACKWARDS, DIRECTIONS
from funcrobust.core.training.robust import STATISTICS, Term, Views, cure_term
from funcrobust.running.options import CureOptions

ATTACKS = ("rs-fgsm", "fgsm", "n-fgsm", "zerograd", "pgd", "none")
GROWTHS = ("constant", "paper", "linear")
PAPER_H = (0.1, 0.4, 0.8, 1.8, 3.0)
"""The h of the CURE paper's five stages (section 5), as published."""


def training_attack(options: CureOptions, ball: Ball) -> Attack | None:
    """Build the attack of ``--attack``; ``fgsm`` is the document family's name of rs-fgsm."""
    name = options.attack.lower()
    if name not in ATTACKS:
        raise FuncrobustError(f"unknown attack {options.attack!r}: use {', '.join(ATTACKS)}")
    if name == "none":
        return None
    if name == "n-fgsm" and options.constraint not in ("linf", "inf"):
        raise FuncrobustError("n-fgsm is an L-infinity attack: use --constraint linf")
    default = options.epsilon * {"n-fgsm": 1.0, "pgd": 0.25}.get(name, 1.25)
    alpha = require_finite("alpha", default if options.alpha is None else options.alpha)
    attack = {
        "n-fgsm": lambda: attacks.n_fgsm(options.epsilon, step_size=alpha, noise=options.noise),
        "zerograd": lambda: attacks.zerograd(ball, step_size=alpha, quantile=options.quantile),
        "pgd": lambda: attacks.pgd_k(
            ball, step_size=alpha, steps=require_count("attack_steps", options.attack_steps)
        ),
    }.get(name, lambda: attacks.rs_fgsm(ball, step_size=alpha))()
    return attacks.from_images(attack) if options.delta_init == "zero" else attack


def terms(
    options: CureOptions, ball: Ball, scale: float, helper_labels: Callable[[Tensor], Tensor] | None
) -> dict[str, tuple[float, Term]]:
    """Build the regularisers whose weights are not 0. ``scale`` turns their units into pixels."""
    found: dict[str, tuple[float, Term]] = {}
    direction = options.delta.lower()
    if direction != "none" and options.lam > 0:
        # The fgsm and linf directions' norm is squared, so their λ scales with σ².
        lam = options.lam * (scale**2 if direction in ("fgsm", "linf") else scale)
        cure = cure_term(options.h * scale, direction, options.cure_backward)
        found["curvature"] = (lam, cure)

    def corner(views: Views, x: Tensor, k: int) -> Tensor:
        """The k-th uniform point of the ε-cube around x."""
        assert views.noise is not None
        return x + options.epsilon * views.noise[k]

    def at_x(build: Callable[[Views, Tensor], Loss]) -> Term:
        """Let a regulariser that needs points around x have x."""

        def term(views: Views) -> Loss:
            return lambda params, x, y: build(views, x)(params, x, y)

        return term

    def gradalign(views: Views, x: Tensor) -> Loss:
        loss = cross_entropy(views.evaluating)
        return linearity.gradient_alignment(loss, toward=corner(views, x, 0))

    def elle(views: Views, x: Tensor) -> Loss:
        assert views.noise is not None
        mix = (views.noise[2].flatten(1)[:, 0] + 1) / 2
        ends = (corner(views, x, 0), corner(views, x, 1))
        return linearity.elle(cross_entropy(views.training), ends=ends, mix=mix)

    def llr(views: Views, x: Tensor) -> Loss:
        search = attacks.pgd_k(ball, step_size=options.epsilon / 2, steps=2).perturb
        start = corner(views, x, 0)
        return linearity.local_linearity(cross_entropy(views.evaluating), search, start=start)

    def hat(views: Views, _: Tensor) -> Loss:
        assert helper_labels is not None
        return objectives.helper(
            cross_entropy(views.training), toward=views.perturbed, labels=helper_labels
        )

    found |= {
        "clean_loss": (options.kappa, lambda views: cross_entropy(views.training)),
        "gradalign": (options.gradalign, at_x(gradalign)),
        "llr": (options.llr, at_x(llr)),
        "elle": (options.elle, at_x(elle)),
        "gradient_penalty": (
            options.input_gradient,
            lambda views: linearity.input_gradient_norm(cross_entropy(views.evaluating)),
        ),
        "helper": (options.hat, at_x(hat)),
    }
    return {name: (weight, term) for name, (weight, term) in found.items() if weight > 0}


def draws(options: CureOptions) -> int:
    """How many independent noise images the regularisers need of each batch."""
    if options.elle > 0:
        return 3
    random = options.delta.lower() == "random" and options.lam > 0
    return int(random or options.gradalign > 0 or options.llr > 0)


@dataclass(frozen=True)
class Growth:
    """The share of its full h that CURE has at an update, 0-dim float32.

    "constant": 1; "paper": the published stages 0.1, 0.4, 0.8, 1.8, 3 over 3, each for a fifth of
    the run; "linear": from 0 to 1 over the first half.
    """

    kind: str
    total_steps: int

    def __call__(self, step: int) -> Tensor:
        t = step / self.total_steps
        share = {
            "constant": 1.0, "linear": min(1.0, 2 * t),
            "paper": PAPER_H[min(4, int(5 * t))] / PAPER_H[-1],
        }[self.kind]  # fmt: skip
        return torch.tensor(share)


def check(options: CureOptions) -> None:
    """Raise for any option of the methods that makes no sense."""
    weights = (
        "h", "lam", "kappa", "gradalign", "llr", "elle", "input_gradient", "hat", "noise",
        "momentum", "weight_decay",
    )  # fmt: skip
    for name in weights:
        require_finite("lambda" if name == "lam" else name, getattr(options, name))
    counts = {"epochs": 1, "batch_size": 2, "robust_examples": 1, "cure_every": 1}
    for name, least in counts.items():
        require_count(name, getattr(options, name), minimum=least)
    choices = {
        "delta": DIRECTIONS, "delta_init": ("random", "zero"), "units": ("normalized", "pixel"),
        "attack_statistics": ("running", "batch"),
        "cure_statistics": STATISTICS, "h_schedule": GROWTHS,
        "cure_backward": BACKWARDS,
    }  # fmt: skip
    for name, known in choices.items():
        if str(getattr(options, name)).lower() not in known:
            flag = name.replace("_", "-")
            raise FuncrobustError(
                f"unknown --{flag} {getattr(options, name)!r}: use {', '.join(known)}"
            )
    if not 0 < options.cure_fraction <= 1:
        raise FuncrobustError(f"cure-fraction must be in (0, 1], got {options.cure_fraction}")
    if not 0 <= options.label_smoothing < 1:
        raise FuncrobustError(f"label-smoothing must be in [0, 1), got {options.label_smoothing}")
    if not 0 <= options.ema < 1:
        raise FuncrobustError(f"ema must be in [0, 1), got {options.ema}; 0 keeps no average")
    if options.hat > 0 and not options.helper:
        raise FuncrobustError("--hat needs --helper CHECKPOINT: a network trained with no attack")
    if options.trades is not None and options.attack.lower() == "none":
        raise FuncrobustError("--trades needs an attack: its second term compares x with x̂")
    if options.trades is not None and options.delta_init == "zero":
        raise FuncrobustError("--trades needs --delta-init random: its KL has no slope at x itself")
