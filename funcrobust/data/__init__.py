"""Datasets: fetched once, checked by hash, kept in a cache, augmented in batches.

``load`` takes the name of a known set, a ``.npz`` file or a folder of images, and returns a
``Dataset`` of tensors. Sets of CIFAR's size fit in the memory of any GPU as uint8, so there are
no worker processes: a batch is an index into a tensor. What memory cannot hold is `Streamed`.
"""

from funcrobust.core.images import as_float
from funcrobust.data.augment import batches, flip_and_crop
from funcrobust.data.cache import default_cache
from funcrobust.data.dataset import Dataset, reordered
from funcrobust.data.feeding import Feed, feed, is_cropped, training_feed
from funcrobust.data.loading import load
from funcrobust.data.progress import Progress, silent
from funcrobust.data.sets import names
from funcrobust.data.sources import DataUnavailable
from funcrobust.data.streaming.images import Streamed
from funcrobust.data.streaming.opening import Streaming

__all__ = [
    "DataUnavailable",
    "Dataset",
    "Feed",
    "Progress",
    "Streamed",
    "Streaming",
    "as_float",
    "batches",
    "default_cache",
    "feed",
    "flip_and_crop",
    "is_cropped",
    "load",
    "names",
    "reordered",
    "silent",
    "training_feed",
]
