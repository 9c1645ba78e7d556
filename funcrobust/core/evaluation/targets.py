"""Targets of a targeted evaluation: for each image a class that an adversary shall make of it.

The question is not whether an image can be misclassified, but whether as a class that the attacker
chose: the targeted success rate. An image of the target class is no question, and is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.adversary import AT_ONCE
from funcrobust.core.images import as_float
from funcrobust.core.losses import own_and_others
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import generator


class Targets(NamedTuple):
    """Which images are asked about, and what they shall be."""

    kept: Tensor
    """Their places (n,), n ≤ N, ascending."""
    target: Tensor
    """(n,) int64, never an image's own label."""


def one_class(y: Tensor, target: int) -> Targets:
    """Aim at one class; images of it are left out. Raises `FuncrobustError` if none is left."""
    kept = (y != target).nonzero().squeeze(1)
    if not len(kept):
        raise FuncrobustError(f"all of the images are of class {target}, the target")
    return Targets(kept, torch.full_like(kept, target))


def at_random(y: Tensor, classes: int, numbers: Tensor, *, seed: int = 0) -> Targets:
    """Aim at another class than the label, each equally likely: a function of seed and number."""
    require_count("classes", classes, minimum=2)
    draws = [
        int(torch.randint(classes - 1, (), generator=generator(seed, "target", number)))
        for number in numbers.tolist()
    ]
    drawn = torch.tensor(draws, dtype=torch.int64, device=y.device)
    return Targets(torch.arange(len(y), device=y.device), drawn + (drawn >= y))


def likeliest_others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """Return the ``count`` likeliest classes but y, or all of them: (B, count), likeliest first."""
    _, others = own_and_others(logits, y)
    return others.topk(min(count, logits.shape[-1] - 1), dim=-1).indices


@torch.no_grad()
def least_likely(
    predict: Predict, params: Params, x: Tensor, y: Tensor, *, batch_size: int = AT_ONCE
) -> Targets:
    """Aim at the class that the clean image is least taken for, the label apart.

    The hardest to reach, as a rule: Kurakin et al. 2017 (arXiv:1607.02533), section 2.3.
    """
    found = []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        _, others = own_and_others(-predict(params, as_float(images)), labels)
        found.append(others.argmax(-1))
    return Targets(torch.arange(len(y), device=y.device), torch.cat(found))
