"""Networks by name, each taking images in [0, 1] with its normalisation inside."""

from funcrobust.models.features import head, representation
from funcrobust.models.madry import import_robustness
from funcrobust.models.normalized import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalized,
)
from funcrobust.models.registry import build, names, usual_image_size

__all__ = [
    "CIFAR10_MEAN", "CIFAR10_STD", "IMAGENET_MEAN", "IMAGENET_STD", "Normalized", "build", "head",
    "import_robustness", "names", "representation", "usual_image_size",
]  # fmt: skip
