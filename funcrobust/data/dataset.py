"""The dataset type, and the one door through which decoded arrays become one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.randomness import generator
from funcrobust.data.arrays import Arrays as Arrays  # kept under this name, too
from funcrobust.data.streaming.images import Streamed


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set in memory, on one device; or one whose images are `Streamed`.

    Images are (N, C, H, W), contiguous: uint8 (0 to 255), or float32 in [0, 1] when the source
    holds floats. Labels are int64 (N,), from 0 to ``num_classes - 1``.
    """

    name: str
    x_train: Tensor | Streamed = field(repr=False)
    y_train: Tensor = field(repr=False)
    x_test: Tensor | Streamed = field(repr=False)
    y_test: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    source: str
    """Where it came from, in a phrase: "cache", "scikit-learn", ..."""
    mirrored: bool = True
    """Whether an image seen in a mirror is one of its class still, so that training may flip it: a
    mirrored 2 is no digit."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel of ``x_train``, as floats in [0, 1].

        Of streamed images: over 2048 of them, at random.
        """
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation (dividing by N) of each channel, over the same images."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        x = self.x_train
        if isinstance(x, Streamed):
            moments = [_moments_of(counts) for counts in _counts_of_some(x)]
        else:
            moments = [_moments(channel) for channel in x.unbind(1)]
        return tuple(mean for mean, _ in moments), tuple(std for _, std in moments)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the set with its four tensors on ``device``; dtypes stay."""
        return replace(
            self,
            x_train=self.x_train.to(device),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device),
            y_test=self.y_test.to(device),
        )

    def in_memory(self) -> tuple[Tensor, Tensor]:
        """Return the training and test images; raises `FuncrobustError` if they are streamed."""
        if isinstance(self.x_train, Streamed) or isinstance(self.x_test, Streamed):
            raise FuncrobustError(
                f"this needs all images in memory, but those of {self.name} are streamed"
            )
        return self.x_train, self.x_test

    def subset(self, train: int | None, test: int | None, seed: int) -> Dataset:
        """Return the first ``train`` and ``test`` examples of a permutation drawn from ``seed``.

        Subsets of one seed are nested; None keeps that half whole and in its order. Raises
        ``FuncrobustError`` for a number below 1 or above what there is.
        """
        x_train, y_train = _chosen("train", self.x_train, self.y_train, train, seed)
        x_test, y_test = _chosen("test", self.x_test, self.y_test, test, seed)
        return replace(self, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def dataset_from(name: str, arrays: Arrays, source: str, *, mirrored: bool = True) -> Dataset:
    """Check decoded arrays and return them as a ``Dataset``.

    Raises ``FuncrobustError``, in one line, for empty or mismatched arrays, labels out of range,
    and floats that are NaN or outside [0, 1].
    """
    for half, x, y in _halves(arrays):
        _check_images(name, f"x_{half}", x)
        _check_labels(name, f"y_{half}", y, len(x), len(arrays.class_names))
    train, test = arrays.x_train, arrays.x_test
    if train.shape[1:] != test.shape[1:]:
        raise FuncrobustError(
            f"{name}: images of x_train are {_size(train)}, those of x_test {_size(test)}"
        )
    if train.dtype.kind != test.dtype.kind:
        raise FuncrobustError(f"{name}: x_train is {train.dtype} but x_test is {test.dtype}")
    return Dataset(
        name=name,
        x_train=_images(train),
        y_train=torch.from_numpy(arrays.y_train.astype(np.int64)),
        x_test=_images(test),
        y_test=torch.from_numpy(arrays.y_test.astype(np.int64)),
        class_names=arrays.class_names,
        source=source,
        mirrored=mirrored,
    )


def _moments(channel: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one channel, without a float copy of a uint8 one."""
    if channel.dtype != torch.uint8:
        std, mean = torch.std_mean(channel.to(torch.float64), correction=0)
        return float(mean), float(std)
    return _moments_of(_counts(channel))


def _counts(channel: Tensor) -> Tensor:
    """How many pixels have each level: int64 (256,)."""
    return torch.bincount(channel.flatten(), minlength=256)


def _moments_of(counts: Tensor) -> tuple[float, float]:
    weights = counts.to(torch.float64) / counts.sum()
    values = torch.arange(256, dtype=torch.float64, device=counts.device) / 255
    mean = (weights * values).sum()
    return float(mean), float((weights * (values - mean) ** 2).sum().sqrt())


LOOKED_AT = 2048
"""Streamed images whose mean and standard deviation stand for all: to 0.004 or so."""


def _counts_of_some(x: Streamed) -> Tensor:
    """(C, 256), over images drawn without replacement; memory holds a few at a time."""
    drawn = torch.randperm(len(x), generator=generator(0, "data/moments"))[:LOOKED_AT]
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64)
    for part in x.at(drawn).parts():
        counts += torch.stack([_counts(channel) for channel in part.unbind(1)])
    return counts


def reordered(x: Tensor | Streamed, index: Tensor) -> Tensor | Streamed:
    """Return the images at ``index``; streamed ones are not decoded for that."""
    return x.at(index) if isinstance(x, Streamed) else x[index]


def _chosen(
    half: str, x: Tensor | Streamed, y: Tensor, count: int | None, seed: int
) -> tuple[Tensor | Streamed, Tensor]:
    if count is None:
        return x, y
    if require_count(half, count, minimum=1) > len(x):
        raise FuncrobustError(f"cannot take {count} {half} examples, the set has {len(x)}")
    order = torch.randperm(len(x), generator=generator(seed, f"data/subset/{half}"))
    index = order[:count].to(x.device)
    return reordered(x, index), y[index]


def _halves(arrays: Arrays) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    yield "train", arrays.x_train, arrays.y_train
    yield "test", arrays.x_test, arrays.y_test


def _check_images(name: str, key: str, x: NDArray[Any]) -> None:
    if x.size == 0:
        raise FuncrobustError(f"{name}: {key} is empty")
    if x.dtype == np.uint8:
        return
    if x.dtype.kind != "f":
        raise FuncrobustError(f"{name}: {key} must be uint8 or floating point, got {x.dtype}")
    low, high = x.min(), x.max()
    if np.isnan(low):
        raise FuncrobustError(f"{name}: {key} holds NaN")
    if low < 0 or high > 1:
        raise FuncrobustError(
            f"{name}: floats in {key} must lie in [0, 1], found {low:g} to {high:g}; "
            "scale them, or store 0 to 255 as uint8"
        )


def _check_labels(name: str, key: str, y: NDArray[Any], count: int, classes: int) -> None:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise FuncrobustError(
            f"{name}: {key} must be integers of shape (N,), got {y.dtype} {y.shape}"
        )
    if len(y) != count:
        raise FuncrobustError(f"{name}: {key} has {len(y)} labels for {count} images")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise FuncrobustError(
            f"{name}: labels in {key} must lie in 0..{classes - 1} ({classes} classes), "
            f"found {low} to {high}"
        )


def _images(x: NDArray[Any]) -> Tensor:
    """(N, H, W, C) to a contiguous (N, C, H, W) tensor that owns its memory."""
    x = x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x
    return torch.from_numpy(np.require(x, requirements="W")).permute(0, 3, 1, 2).contiguous()


def _size(x: NDArray[Any]) -> str:
    height, width, channels = x.shape[1:]
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
