"""Adversaries in turn: who withstands them all, who fell to which, and the images that did it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation.accuracy import correct
from funcrobust.core.evaluation.adversary import Adversary, Run
from funcrobust.core.images import as_float
from funcrobust.core.network.functional import Params, Predict


def _ignore(_: int) -> None:
    pass


class Outcome(NamedTuple):
    """What became of each example."""

    fell_to: Tensor
    """(N,) int64: 0 misclassified clean, k fell to the k-th adversary, −1 withstands all."""
    images: Tensor
    """(N, …) float: the image that is misclassified, or the clean one where there is none."""
    predicted: Tensor
    """(N,) int64: the class seen in ``images``."""

    @property
    def clean(self) -> Tensor:
        """Who is classified right without an attack: (N,) bool."""
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
    batch_size: int = 250,
    advance: Callable[[int], object] = _ignore,
) -> Outcome:
    """Run each adversary on those that withstand the ones before it.

    ``x`` (N, …) is float or bytes, y (N,); ``numbers`` (N,) are the examples' numbers in the whole
    set, 0 … N−1 unless given, of which their random numbers are functions. Every image that an
    adversary gives is classified anew here, alone with the others that fell. ``advance(n)`` is told
    of n examples done with, N for each adversary.

    Raises `FuncrobustError` where there are no examples.
    """
    if len(x) == 0:
        raise FuncrobustError("there are no examples to evaluate")
    if numbers is None:
        numbers = torch.arange(len(x), device=x.device)
    images = as_float(x).clone()
    predicted = _classes(predict, params, images, batch_size)
    fell_to = torch.where(predicted == y, -1, 0)
    for k, (name, adversary) in enumerate(adversaries.items(), start=1):
        standing = (fell_to < 0).nonzero().squeeze(1)
        advance(len(x) - len(standing))
        run = Run(numbers[standing], seed, f"evaluate/{name}", batch_size, advance)
        found = adversary(predict, params, images[standing], y[standing], run)
        seen = _classes(predict, params, found, batch_size)
        fooled = seen != y[standing]
        images[standing[fooled]] = found[fooled].to(images.dtype)
        predicted[standing[fooled]] = seen[fooled]
        fell_to[standing[fooled]] = k
    return Outcome(fell_to, images, predicted)


def robust(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    adversary: Adversary,
    *,
    seed: int | None = None,
    batch_size: int = 500,
    advance: Callable[[int], object] = _ignore,
) -> Tensor:
    """Tell which examples withstand one adversary: (N,) bool.

    The first restart of `Pgd` with a seed of its own takes that.
    """
    if seed is None:
        seed = int(getattr(adversary, "seed", 0))
    outcome = attack_all(
        predict, params, x, y, {"robust": adversary}, seed=seed, batch_size=batch_size,
        advance=advance,
    )  # fmt: skip
    return outcome.robust


@torch.no_grad()
def _classes(predict: Predict, params: Params, x: Tensor, batch_size: int) -> Tensor:
    seen = [predict(params, part).argmax(-1) for part in x.split(batch_size)]
    return torch.cat(seen) if seen else x.new_zeros(0, dtype=torch.int64)


__all__ = ["Outcome", "attack_all", "correct", "robust"]
