"""A classifier's representation: what its last linear layer reads."""

from __future__ import annotations

import copy

from torch import nn

from funcrobust.core.errors import FuncrobustError


def representation(module: nn.Module) -> nn.Module:
    """Return a copy of the network with its last ``nn.Linear`` taken out: x to features (B, d).

    The last one registered, which in classifiers is the one that gives the logits; what precedes it
    (pooling, flattening) stays. The module given is not changed.

    Raises `FuncrobustError` for a network without a linear layer.

    >>> from funcrobust import models
    >>> features = representation(models.build("preact-tiny"))
    >>> features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    network = copy.deepcopy(module)
    path = _last_linear(network)
    if path == "":
        return nn.Identity()
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def head(module: nn.Module) -> nn.Linear:
    """Return the network's own last ``nn.Linear``: features (B, d) to logits (B, classes).

    Raises `FuncrobustError` for a network without a linear layer.
    """
    linear = module.get_submodule(_last_linear(module))
    assert isinstance(linear, nn.Linear)
    return linear


def _last_linear(module: nn.Module) -> str:
    linear: list[str] = [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear)
    ]
    if not linear:
        raise FuncrobustError(
            f"{type(module).__name__} has no nn.Linear to take the features before: give a "
            "function (params, x) -> (B, d) of your own"
        )
    return linear[-1]
