"""``evaluate --draws``: a network that is random, as the mean of some of its draws."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.images import as_float
from funcrobust.core.network.expectation import expectation
from funcrobust.core.network.functional import Functional, Predict
from funcrobust.core.randomness import key


@torch.no_grad()
def mean_of_draws(model: Functional, draws: int, seed: int, x: Tensor) -> Predict:
    """Build the `expectation` over ``draws`` draws, counted from ``seed``.

    Raises `FuncrobustError` for a network that draws nothing on x (B, …), so that its mean is
    itself.
    """
    keys = torch.stack([key(seed, "draws", count, x.device) for count in range(max(draws, 2))])
    one, other = (expectation(model, keys[k : k + 1])(model.params, as_float(x)) for k in (0, 1))
    if torch.equal(one, other):
        raise FuncrobustError("--draws: this network draws nothing at random, leave it out")
    return expectation(model, keys[:draws])
