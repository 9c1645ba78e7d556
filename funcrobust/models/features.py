"""A classifier's representation: what its last linear layer reads."""

from __future__ import annotations

import copy

from torch import nn

from funcrobust.errors import FuncrobustError


def representation(module: nn.Module) -> nn.Module:
    """Return a copy of the network with its last ``nn.Linear`` taken out: x to features (B, d).

    The last one registered, which in classifiers is the one that gives the logits; what precedes it
    (pooling, flattening) stays. The module given is not changed.

    Raises `FuncrobustError` for a network without a linear layer.

    >>> features = representation(build("preact-tiny"))  # doctest: +SKIP
    >>> features(torch.zeros(2, 3, 32, 32)).shape        # doctest: +SKIP
    torch.Size([2, 128])
    """
    network = copy.deepcopy(module)
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise FuncrobustError(
            f"{type(module).__name__} has no nn.Linear to take the features before: give a "
            "function (params, x) -> (B, d) of your own"
        )
    if linear == [""]:
        return nn.Identity()
    parent, _, name = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network
