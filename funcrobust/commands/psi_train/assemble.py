"""What ``psi-train`` is put together from: ψ, its anchor, its starts, its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.core.balls.norms import linf
from funcrobust.core.derivatives.adjoint import Step
from funcrobust.core.errors import FuncrobustError, require_count, require_finite
from funcrobust.core.losses import (
    DISTANCES,
    Distance,
    Loss,
    cross_entropy,
    distillation,
    entropy,
    logit,
    margin,
)
from funcrobust.core.network.functional import Predict
from funcrobust.core.objectives.algebra import adversarial, weighted_sum
from funcrobust.core.perturbations.projected_gradient import Perturbation, gradient_step, pgd, psi
from funcrobust.core.randomness import generator
from funcrobust.core.starts import GaussianStarts
from funcrobust.running.options import PsiOptions
from funcrobust.running.threat import pick_ball

PSI_LOSSES: dict[str, Callable[[Predict], Loss]] = {
    "cross-entropy": cross_entropy, "margin": margin, "logit": logit, "entropy": entropy,
}  # fmt: skip
AnchorOf = Callable[[Predict], Loss]
KINDS = ("own", "made", "gaussian", "noise")
STOPS = (4, 16)
"""Steps that images of --start made have walked: early ones are noise, later ones overdrawn."""


def make_psi(options: PsiOptions, steps: int | None = None) -> Callable[[Predict], Perturbation]:
    """Build ψ over a `Predict`, checking the options before anything is loaded."""
    ball = pick_ball(options.constraint, options.eps)
    descended = _pick("psi-loss", options.psi_loss, PSI_LOSSES)

    def build(predict: Predict) -> Perturbation:
        return psi(
            descended(predict), ball, step_size=options.step_size,
            steps=options.steps if steps is None else steps, targeted=options.targeted,
            backward=options.backward,
        )  # fmt: skip

    build(lambda _, x: x)  # bad options raise here, not minutes later
    return build


def approach(options: PsiOptions, predict: Predict) -> Step:
    """Build the step by which --start made draws its images."""
    ball = pick_ball(options.constraint, options.eps)
    descended = PSI_LOSSES[options.psi_loss](predict)
    return gradient_step(descended, ball, step_size=options.step_size, targeted=options.targeted)


def pick_distance(name: str) -> Distance:
    """Look up mse, l1 or ssim."""
    return _pick("distance", name, DISTANCES)


def radius(options: PsiOptions) -> float:
    """Return the radius of the robust accuracy and the anchor."""
    return 8 / 255 if options.epsilon is None else options.epsilon


ANCHORS = ("keep", "clean", "robust", "both")


def make_anchor(options: PsiOptions, teacher: Callable[[Tensor], Tensor]) -> AnchorOf:
    """Build the anchor: the cross-entropy on images ("clean"), on adversarial ones ("robust"), half
    of each ("both"); or half of each of the divergence from the network before ("keep").
    """  # fmt: skip
    epsilon, steps = radius(options), options.anchor_steps
    # One step goes to the surface; several overshoot it 2.5-fold in all, as Madry et al. do.
    step_size = epsilon if steps == 1 else 2.5 * epsilon / steps
    ball = linf(epsilon)

    def anchor(predict: Predict) -> Loss:
        hard = cross_entropy(predict)
        loss = distillation(predict, teacher) if options.anchor_loss == "keep" else hard
        if options.anchor_loss == "clean":
            return loss
        robust = adversarial(loss, pgd(hard, ball, step_size=step_size, steps=steps))
        if options.anchor_loss == "robust":
            return robust
        return weighted_sum((0.5, loss), (0.5, robust))

    return anchor


@dataclass(frozen=True)
class Batches:
    """``step -> (x, label, y)`` and the start or its index, drawn without replacement."""

    dataset: data.Dataset
    options: PsiOptions
    gaussian: GaussianStarts | None = field(default=None, repr=False)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Draw the batch of one step."""
        options, device = self.options, self.dataset.y_train.device
        draw = generator(options.seed, "psi/order", step, device)
        n = len(self.dataset.y_train)
        index = torch.randperm(n, generator=draw, device=device)[: options.batch_size]
        x = data.as_float(self.dataset.x_train[index]).contiguous(memory_format=torch.channels_last)
        y = self.dataset.y_train[index]
        if options.learn_starts:
            chosen = torch.randperm(options.learn_starts, generator=draw, device=device)[: len(y)]
            return x, self.dataset.y_train[chosen], y, chosen
        label = labels_for(y, options.label, self.dataset.num_classes, draw)
        if options.start == "own":
            return x, label, y
        if options.start == "made":
            return x, label, y, *self.approached(label, step)
        return x, label, y, self.degraded(x, y, step)

    def approached(self, label: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gaussian starts for the labels, and how many steps each is to walk."""
        assert self.gaussian is not None
        draw = generator(self.options.seed, "psi/start", step, label.device)
        low, high = STOPS
        stops = torch.randint(low, high + 1, label.shape, generator=draw, device=label.device)
        starts = self.gaussian(label, draw)
        return starts.contiguous(memory_format=torch.channels_last), stops

    def degraded(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """(1 − s)·x + s·n per image, s uniform in [0, start_noise], n noise or a class Gaussian."""
        draw = generator(self.options.seed, "psi/start", step, x.device)
        share = self.options.start_noise * torch.rand(
            (len(x), 1, 1, 1), generator=draw, device=x.device
        )
        if self.gaussian is None:
            other = torch.rand(x.shape, generator=draw, device=x.device)
        else:
            other = self.gaussian(y, draw)
        mixed: Tensor = (1 - share) * x + share * other
        return mixed.contiguous(memory_format=torch.channels_last)


def make_batches(options: PsiOptions, dataset: data.Dataset) -> Batches:
    """Build the batches."""
    drawn = options.start in ("made", "gaussian")
    return Batches(dataset, options, gaussian_starts(dataset) if drawn else None)


def gaussian_starts(dataset: data.Dataset) -> GaussianStarts:
    """Take a sixth of CIFAR-10: plenty for a class's mean and covariance."""
    return GaussianStarts(data.as_float(dataset.x_train[:8000]), dataset.y_train[:8000])


def labels_for(y: Tensor, label: str, num_classes: int, draw: torch.Generator) -> Tensor:
    """Return the labels that ψ moves toward or from: the image's own, random ones, or one class."""
    if label == "own":
        return y
    if label == "random":
        return torch.randint(num_classes, y.shape, generator=draw, device=y.device)
    if label.isdecimal() and int(label) < num_classes:
        return torch.full_like(y, int(label))
    raise FuncrobustError(
        f"label must be own, random or a class number below {num_classes}, got {label!r}"
    )


def check(options: PsiOptions) -> None:
    """Refuse what cannot work, before anything is loaded."""
    for name in (
        "aim", "anchor", "lr_max", "momentum", "weight_decay", "clip_norm", "entropy",
        "start_noise", "starts_rate", "drift_weight",
    ):  # fmt: skip
        require_finite(name.replace("_", "-"), getattr(options, name))
    require_finite("epsilon", radius(options))
    for name in ("updates", "batch_size", "heldout_examples"):
        require_count(name, getattr(options, name), minimum=1)
    require_count("anchor-steps", options.anchor_steps, minimum=1)
    _pick("anchor-loss", options.anchor_loss, dict.fromkeys(ANCHORS))
    require_count("learn-starts", options.learn_starts)
    require_count("strips", options.strips)
    if options.steps == 0:
        raise FuncrobustError("psi with 0 steps never moves: its drift is 0 for every network")
    _pick("start", options.start, dict.fromkeys(KINDS))
    if options.start_noise > 1:
        raise FuncrobustError(f"start-noise is a share in [0, 1], got {options.start_noise}")
    if options.learn_starts and options.starts_rate == 0:
        raise FuncrobustError("starts-rate must be positive, or the start images never move")
    if options.learn_starts and (options.start in ("gaussian", "noise") or options.label != "own"):
        raise FuncrobustError("--learn-starts takes the place of --start and --label")


Chosen = TypeVar("Chosen")


def _pick(what: str, name: str, known: Mapping[str, Chosen]) -> Chosen:
    if name not in known:
        raise FuncrobustError(f"unknown {what} {name!r}: use {', '.join(known)}")
    return known[name]
