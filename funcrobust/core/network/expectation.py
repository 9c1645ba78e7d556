"""A network that draws random numbers, as the mean of some of its draws: then it is a function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict


def expectation(model: Functional, keys: Tensor, *, buffers: Buffers | None = None) -> Predict:
    r"""Build the mean prediction over a network's draws: log (1/K) Σ_k softmax z(θ, x; k).

    Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397, equation 1): an attack
    on a network that is random, by noise on its input or dropout left on, goes up the mean of many
    draws, since the gradient of one says little of the next. The draws k are counted, by ``keys``
    (K, 2), as `funcrobust.key` makes them: so this is a pure function, which an attack sees whole
    and which is judged as it is attacked. Every image of a batch gets the same draws, so that none
    depends on the others. What can be counted, `Functional.predict_train` says; evaluation mode
    otherwise, with ``buffers``, by default the network's own.

    Logits (B, classes) that are log-probabilities; K forward passes. The mean of K draws is a
    network of its own, more robust than a draw at random is, and as good as an ensemble.

    Raises `FuncrobustError` for keys that are none, and where the network draws what is not
    counted.

    >>> import funcrobust as fr
    >>> noisy = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
    >>> model = fr.functionalize(noisy)
    >>> keys = torch.stack([fr.key(0, "draws", count) for count in range(8)])
    >>> fr.expectation(model, keys)(model.params, torch.ones(2, 4)).exp().sum(1).round(decimals=3)
    tensor([1., 1.])
    """
    if isinstance(keys, list | tuple) and keys:
        keys = torch.stack(list(keys))
    if not isinstance(keys, Tensor):
        raise FuncrobustError(
            "keys are (K, 2): torch.stack([fr.key(seed, 'draws', k) for k in range(K)]), not "
            f"{keys!r}"[:200]
        )
    if keys.is_floating_point() or keys.ndim != 2 or keys.shape[-1] != 2 or not len(keys):
        raise FuncrobustError(
            "keys are (K, 2), at least one: torch.stack([fr.key(seed, 'draws', k) for k in "
            f"range(K)]), got {tuple(keys.shape)}"
        )
    held = model.buffers if buffers is None else buffers
    draws = [model.with_buffers(held, key=key) for key in keys]

    def predict(params: Params, x: Tensor) -> Tensor:
        def of_one(image: Tensor) -> Tensor:
            logits = torch.stack([draw(params, image.unsqueeze(0)).squeeze(0) for draw in draws])
            return logits.log_softmax(-1).logsumexp(0) - math.log(len(draws))

        return torch.func.vmap(of_one)(x)

    return predict
