"""Adversaries in turn: who withstands them all, who fell to which, and the images that did it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.arguments import require_adversary, require_predict
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation.accuracy import classes, require_pairs
from funcrobust.core.evaluation.adversaries import Pgd
from funcrobust.core.evaluation.adversary import AT_ONCE, Adversary, Run, ignore, inside, succeeds
from funcrobust.core.examples import flat
from funcrobust.core.images import as_float
from funcrobust.core.network.functional import Params, Predict


class Outcome(NamedTuple):
    """What became of each example: who falls is misclassified, or, targeted, seen as the target."""

    fell_to: Tensor
    """(N,) int64: 0 has fallen as it is, k fell to the k-th adversary, −1 withstands all."""
    images: Tensor
    """(N, …) float: the image with which it fell, or the clean one where there is none."""
    predicted: Tensor
    """(N,) int64: the class seen in ``images``."""

    @property
    def clean(self) -> Tensor:
        """Who stands without an attack, classified right or not as the target: (N,) bool."""
        return self.fell_to != 0

    @property
    def robust(self) -> Tensor:
        """Who withstands all: (N,) bool."""
        return self.fell_to < 0

    def after(self, k: int) -> Tensor:
        """Who withstands the first k adversaries: (N,) bool."""
        return (self.fell_to < 0) | (self.fell_to > k)


def attack_all(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    adversaries: Mapping[str, Adversary],
    *,
    numbers: Tensor | None = None,
    seed: int = 0,
    batch_size: int = AT_ONCE,
    advance: Callable[[int], object] = ignore,
    targeted: bool = False,
    ball: Ball | None = None,
) -> Outcome:
    """Run each adversary on those that withstand the ones before it.

    ``x`` (N, …) is float or bytes, y (N,); ``numbers`` (N,) are the examples' numbers in the whole
    set, 0 … N−1 unless given, of which their random numbers are functions. Every image that an
    adversary gives is classified anew here, alone with the others that fell. ``advance(n)`` is told
    of n examples done with, N for each adversary.

    ``targeted`` y are the classes to be seen, and the adversaries go after them. An image that is
    not finite fools nobody. With a ``ball``, whatever an adversary gives is looked at: of one of
    your own, which may leave it (see `inside`).

    Raises `FuncrobustError` where there are no examples, a `Pgd` has another seed than all have, or
    an adversary gives no images of x's shape, leaves the ``ball``, or goes the other way than
    ``targeted`` says. To stop in between and go on later, take its two parts: `evaluation.look` and
    `attack_the_standing`.
    """
    if not isinstance(adversaries, Mapping):
        raise FuncrobustError('adversaries have names: {"pgd": evaluation.Pgd(ball, step_size)}')
    for adversary in adversaries.values():
        require_adversary(adversary)
    outcome = look(predict, params, x, y, batch_size=batch_size, targeted=targeted)
    if numbers is None:
        numbers = torch.arange(len(x), device=x.device)
    for k, (name, adversary) in enumerate(adversaries.items(), start=1):
        if getattr(adversary, "targeted", targeted) != targeted:
            raise FuncrobustError(
                f"the adversary {name!r} goes {'away from' if targeted else 'toward'} y, and y are "
                f"{'targets' if targeted else 'labels'} here: build it with targeted={targeted}, "
                f"or give targeted={not targeted} to what runs it too"
            )
        if isinstance(adversary, Pgd) and adversary.seed not in (0, seed):
            raise FuncrobustError(
                f"{name} is a Pgd of seed {adversary.seed}, and seed={seed} is all adversaries' "
                f"here: give seed={adversary.seed}, or leave the Pgd's out"
            )
        run = Run(numbers, seed, f"evaluate/{name}", batch_size, advance)
        checked = adversary if ball is None else _within(ball, name, adversary)
        outcome = attack_the_standing(
            predict, params, y, outcome, k, checked, run, targeted=targeted
        )
    return outcome


def _within(ball: Ball, name: str, adversary: Adversary) -> Adversary:
    def watched(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        found = adversary(predict, params, x, y, run)
        left = int((~inside(ball, _images(found, x), x)).sum())
        if left:
            raise FuncrobustError(
                f"{left} of {len(x)} images of the adversary {name} lie outside {ball}: project "
                "them, ball.project(x_hat, x)"
            )
        return found

    return watched


def _images(found: Tensor, x: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise FuncrobustError(
            f"an adversary gives images of x's shape, {tuple(x.shape)}, and this one gave {shape}"
        )
    return found


def look(
    predict: Predict, params: Params, x: Tensor, y: Tensor, *, batch_size: int = AT_ONCE,
    targeted: bool = False,
) -> Outcome:  # fmt: skip
    """Return what becomes of each example without an attack; raise where there are none."""
    if len(x) == 0:
        raise FuncrobustError("there are no examples to evaluate: x is empty")
    require_predict(predict)
    require_pairs(x, y)
    images = as_float(x).clone()
    predicted = classes(predict, params, images, batch_size=batch_size, y=y)
    fallen = succeeds(predicted, y, targeted)
    return Outcome(torch.where(fallen, 0, -1), images, predicted)


def attack_the_standing(
    predict: Predict,
    params: Params,
    y: Tensor,
    outcome: Outcome,
    k: int,
    adversary: Adversary,
    run: Run,
    *,
    targeted: bool = False,
) -> Outcome:
    """Run the k-th adversary on those who withstood the others; ``run`` is for all N."""
    standing = outcome.robust.nonzero().squeeze(1)
    run.advance(len(y) - len(standing))
    if not len(standing):
        return outcome
    own = run._replace(numbers=run.numbers[standing])
    clean = outcome.images[standing]
    found = _images(adversary(predict, params, clean, y[standing], own), clean)
    seen = classes(predict, params, found, batch_size=run.batch_size)
    fooled = succeeds(seen, y[standing], targeted) & flat(found).isfinite().all(1)
    fell = standing[fooled]
    return Outcome(
        outcome.fell_to.index_fill(0, fell, k),
        outcome.images.index_copy(0, fell, found[fooled].to(outcome.images.dtype)),
        outcome.predicted.index_copy(0, fell, seen[fooled]),
    )


def robust(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    adversary: Adversary,
    *,
    seed: int | None = None,
    batch_size: int = 500,
    advance: Callable[[int], object] = ignore,
    targeted: bool = False,
    ball: Ball | None = None,
) -> Tensor:
    """Tell which examples withstand one adversary: (N,) bool.

    ``x`` (N, …) is float or bytes, y (N,) are classes. ``seed`` is `Pgd`'s own unless given, or 0.
    ``targeted`` y are the classes to be seen, and who withstands is not seen as them; ``ball`` is
    `attack_all`'s.

    Raises `FuncrobustError` as `attack_all` does.
    """
    if isinstance(adversary, Pgd):
        seed = adversary.seed if seed is None else seed
        adversary = adversary._replace(seed=seed)
    outcome = attack_all(
        predict, params, x, y, {"robust": adversary}, seed=seed or 0, batch_size=batch_size,
        advance=advance, targeted=targeted, ball=ball,
    )  # fmt: skip
    return outcome.robust
