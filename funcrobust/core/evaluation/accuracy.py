"""Clean accuracy, and the mean of any loss over a set."""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.arguments import require_labels, require_predict, require_tensor
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.images import as_float
from funcrobust.core.losses import Loss, require_classes
from funcrobust.core.network.functional import Params, Predict


@torch.no_grad()
def classes(
    predict: Predict, params: Params, x: Tensor, *, batch_size: int = 500, y: Tensor | None = None
) -> Tensor:
    """Return what the examples are seen as: (N,) int64. x is uint8 or float in [0, 1].

    Where a logit is NaN that is no class, −1.

    Raises `FuncrobustError` for labels y, if they are given, that are none of its classes.
    """
    most = -1 if y is None or not len(y) else int(y.max())
    seen = [torch.zeros(0, dtype=torch.int64, device=x.device)]
    for part in x.split(batch_size):
        if not len(part):
            continue
        logits = predict(params, as_float(part))
        if logits.ndim != 2 or len(logits) != len(part):
            raise FuncrobustError(
                f"the network gives {tuple(logits.shape)} for {len(part)} examples: what is "
                "evaluated gives logits (B, classes)"
            )
        require_classes(logits)
        if most >= logits.shape[-1]:
            raise FuncrobustError(
                f"labels are classes from 0 to {logits.shape[-1] - 1}, and the greatest is {most}"
            )
        seen.append(logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1))
    return torch.cat(seen)


def correct(
    predict: Predict, params: Params, x: Tensor, y: Tensor, *, batch_size: int = 500
) -> Tensor:
    """Tell which examples are classified right: (N,) bool. x is uint8 or float in [0, 1].

    Raises `FuncrobustError` for labels y that are not classes (N,), one for each image.
    """
    require_predict(predict)
    require_pairs(x, y)
    return classes(predict, params, x, batch_size=batch_size, y=y) == y


def require_pairs(x: Tensor, y: Tensor) -> None:
    """Raise unless y (N,) are classes of as many images, which nothing else would tell.

    ``==`` compares what it is given, other shapes and floats included.
    """
    require_tensor(x)
    require_labels(y, x.shape[:1])
    if len(y) and int(y.min()) < 0:
        raise FuncrobustError(f"labels are classes from 0 on, and the least is {int(y.min())}")


def mean_of(loss: Loss, params: Params, x: Tensor, y: Tensor, *, batch_size: int = 128) -> float:
    """Average a loss over a set, in batches and without derivatives.

    ``x`` (N, …) is float or bytes, y (N, …) the labels that the loss takes. Raises
    `FuncrobustError` where there are no examples.
    """
    if len(x) == 0:
        raise FuncrobustError("there are no examples to average over: x is empty")
    with torch.no_grad():
        batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return float(torch.cat([loss(params, as_float(xb), yb) for xb, yb in batches]).mean())
