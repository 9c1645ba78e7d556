r"""DLR: a margin divided by a difference of logits, so that their scale does not matter.

Croce & Hein 2020 (arXiv:2003.01690), section 4: with z_π1 ≥ z_π2 ≥ … the sorted logits,

    DLR(z, y)       = −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3)                  equation 6
    DLR_t(z, y)     = −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2)                 equation 7

The divisors are above 0 but where the leading classes tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcrobust.core.arguments import require_labels, require_predict
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import Loss, own_and_others
from funcrobust.core.network.functional import Params, Predict

TINY = 1e-12
"""Added to a divisor, as in the authors' code, or the least number that the precision has."""


def dlr(predict: Predict) -> Loss:
    """Build the difference of logits ratio (equation 6), of at least three classes.

    In [−1, 0] where x is classified right, above 0 where it is not (at most 1 while y is among the
    three leading classes); the same for the logits times any factor, and with a slope however
    confident the network.
    """
    require_predict(predict)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return dlr_of(predict(params, x), y)

    return loss


def targeted_dlr(predict: Predict, target: Tensor) -> Loss:
    """Build the targeted ratio (equation 7) toward the classes ``target`` (B,), of at least four.

    Ascend it to make x the target's rather than y's: above 0 where z_target > z_y.
    """
    require_predict(predict)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return targeted_dlr_of(predict(params, x), y, target)

    return loss


def dlr_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return equation 6 of logits (B, C): (B,)."""
    _require_classes(logits, 3, "dlr")
    own, others = own_and_others(logits, y)
    leading = logits.topk(3, dim=-1).values
    return (others.amax(-1) - own) / (leading[..., 0] - leading[..., 2] + _tiny(logits))


def targeted_dlr_of(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return equation 7 of logits (B, C): (B,)."""
    _require_classes(logits, 4, "targeted_dlr")
    leading = logits.topk(4, dim=-1).values
    return difference_of(logits, y, target) / (
        leading[..., 0] - (leading[..., 2] + leading[..., 3]) / 2 + _tiny(logits)
    )


def difference_of(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return z_target − z_y of logits (B, C): (B,). Raises for classes of another shape."""
    for classes in (y, target):
        require_labels(classes, logits.shape[:-1])
    own, aim = (logits.gather(-1, c.unsqueeze(-1)).squeeze(-1) for c in (y, target))
    return aim - own


def _require_classes(logits: Tensor, least: int, what: str) -> None:
    if logits.shape[-1] < least:
        raise FuncrobustError(
            f"{what} needs at least {least} classes, got {logits.shape[-1]}: use fr.log_odds or "
            "fr.margin (of evaluation.autoattack(ball, classes=...) say how many)"
        )


def _tiny(logits: Tensor) -> float:
    return max(TINY, torch.finfo(logits.dtype).tiny)
