"""Batch-norm statistics, taken anew for the weights at hand."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Functional, Params
from funcrobust.core.randomness import key


@torch.no_grad()
def recalibrated(
    model: Functional, params: Params, buffers: Buffers, batches: Iterable[Tensor]
) -> Buffers:
    """Return ``buffers`` with batch-norm statistics of ``params`` over some batches of images.

    The plain average over the batches of each batch's own statistics, as stochastic weight
    averaging does it (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). An average of weights
    has statistics of its own, and running ones lag behind weights that move fast.
    """
    sums: Buffers = {}
    moved: set[str] = set()  # not the constants of a normalisation, say: they stay to the bit
    count = 0
    for x in batches:
        masks = key(0, "recalibrate", count, x.device)
        _, after = model.predict_train(params, buffers, x, key=masks)
        own = model.batch_statistics(buffers, after)
        sums = {name: sums.get(name, 0.0) + b for name, b in own.items() if b.is_floating_point()}
        moved |= {name for name in sums if not torch.equal(own[name], buffers[name])}
        count += 1
    if count == 0:
        raise FuncrobustError("recalibration needs at least one batch")
    return buffers | {name: (sums[name] / count).to(buffers[name]) for name in moved}
