"""The images of a training's steps, from memory or from a stream."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from funcrobust.core.randomness import generator
from funcrobust.core.shards import Shard
from funcrobust.data.augment import flip_and_crop
from funcrobust.data.dataset import Dataset
from funcrobust.data.streaming.images import Streamed
from funcrobust.data.streaming.stream import Order, Stream
from funcrobust.data.streaming.workers import Augment

Feed = Callable[[int], Tensor]
"""``step -> images`` (B, C, H, W), as the set has them: uint8 or float."""


def feed(images: Tensor | Streamed, order: Order, *, shard: Shard | None = None) -> Feed:
    """Return the images of each step as they are; of streamed ones only the shard's are decoded."""
    if isinstance(images, Streamed):
        return Stream(images, order, shard=shard)
    return lambda step: images[order(step)]


def training_feed(
    dataset: Dataset, order: Order, seed: int, *, padding: int = 4, shard: Shard | None = None
) -> Feed:
    """Return the training images of each step, augmented as fits; counted from (seed, step).

    In memory: `flip_and_crop`, by ``padding``, where a mirrored image is one of its class still,
    else nothing (`is_cropped`). Streamed: a random crop of random size, resized, and that flip.
    """
    images = dataset.x_train
    if isinstance(images, Streamed):
        return Stream(images, order, augment=Augment(seed, dataset.mirrored), shard=shard)
    if not dataset.mirrored:
        return feed(images, order)
    return lambda step: flip_and_crop(
        images[order(step)], generator(seed, "augment", step, images.device), padding=padding
    )


def is_cropped(dataset: Dataset) -> bool:
    """Tell whether ``padding`` means anything to `training_feed`."""
    return dataset.mirrored and not isinstance(dataset.x_train, Streamed)
