"""What ``--target`` asks for: the images in question and the classes that they shall be."""

from __future__ import annotations

from torch import Tensor

from funcrobust.core.evaluation import targets
from funcrobust.core.network.functional import Params, Predict
from funcrobust.data import Dataset
from funcrobust.running.dataset import wanted_class


def aim(
    target: str, predict: Predict, params: Params, dataset: Dataset, numbers: Tensor, x: Tensor,
    y: Tensor, seed: int,
) -> targets.Targets:  # fmt: skip
    """Choose targets for the images x with labels y; raise for a class that is not there."""
    if target == "random":
        return targets.at_random(y, dataset.num_classes, numbers, seed=seed)
    if target == "least-likely":
        return targets.least_likely(predict, params, x, y)
    place = wanted_class(target, dataset.class_names)
    assert place is not None
    return targets.one_class(y, place)
