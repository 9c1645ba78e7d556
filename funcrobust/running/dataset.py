"""The images of a command: loaded, cut to size, and fit for the network."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust import data, models
from funcrobust.checkpoints import Card
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.core.network.functional import Functional, Params, Predict
from funcrobust.core.randomness import generator, key
from funcrobust.core.starts import Indexed
from funcrobust.models.flip_averaged import FLIP
from funcrobust.reading import user_path
from funcrobust.report.console import Reporter
from funcrobust.running.groups import Images


def load_data(
    name: str, images: Images, reporter: Reporter, *, size: int | None = None
) -> data.Dataset:
    """Load a dataset as the options of ``images`` say, and say what it is.

    ``size`` is that of the images which a network takes, where streamed ones are to be cut to it.
    """
    dataset = data.load(
        name, folder=images.data_dir, progress=reporter.progress_callback(),
        max_bytes=images.max_bytes,
        streaming=data.Streaming(images.stream, images.image_size, images.workers, fitting=size),
    )  # fmt: skip
    reporter.say(
        f"{dataset.name}: {len(dataset.y_train)} training and {len(dataset.y_test)} test images "
        f"of {'x'.join(map(str, dataset.image_shape))} ({dataset.source})"
    )
    return shuffled_if_sorted(dataset)


def part_of(
    dataset: data.Dataset, train: int | None, test: int | None, seed: int, reporter: Reporter
) -> data.Dataset:
    """Take so many images of each half, at random by the seed, and say so; None takes all."""
    part = dataset.subset(train, test, seed)
    halves = (("training", part.y_train, dataset.y_train), ("test", part.y_test, dataset.y_test))
    fewer = [f"{len(own)} {half}" for half, own, all_ in halves if len(own) < len(all_)]
    if fewer:
        reporter.say(f"of them {' and '.join(fewer)} images, at random")
    return part


def shuffled_if_sorted(dataset: data.Dataset) -> data.Dataset:
    """Shuffle splits that come class by class, as folders do: their first part must stand for all.

    The order depends on the number of images alone.
    """
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        labels = getattr(dataset, y)
        if len(labels) > 1 and bool((labels.diff() >= 0).all()):
            order = torch.randperm(len(labels), generator=generator(0, "shuffle"))
            changed = {x: data.reordered(getattr(dataset, x), order), y: labels[order]}
            dataset = replace(dataset, **changed)
    return dataset


def dataset_for(given: str | None, card: Card) -> str:
    """Use the data the classifier was made for, unless told otherwise.

    Raises `FuncrobustError` for a card that does not say, and for one that names a place: a file
    does not choose what is read.
    """
    if not given and card.dataset == "unknown":
        raise FuncrobustError(
            "this checkpoint does not say which data it is for: use --dataset "
            "(cifar10, digits, FILE.npz or FOLDER)"
        )
    if not given and is_own_data(card):
        raise FuncrobustError(
            f"this checkpoint's card says the data {card.dataset}, and a file may not choose what "
            f"is read: if it is right, say --dataset {shlex.quote(card.dataset)}"
        )
    if not given and card.dataset not in data.names():
        raise FuncrobustError(
            f"this checkpoint's card says the data {card.dataset}, and there is nothing called "
            "so: use --dataset FILE.npz or FOLDER"
        )
    return given or card.dataset


def is_own_data(card: Card) -> bool:
    """Tell whether a card names a place of one's own data, which no file may choose."""
    name = card.dataset
    if name == "unknown" or name in data.names():
        return False
    return os.sep in name or name.endswith(".npz") or os.path.exists(user_path(name))  # noqa: PTH110


def load_known(images: Images, card: Card, reporter: Reporter) -> data.Dataset:
    """Load the data that a command was given, or else the classifier's; they must fit it."""
    name = dataset_for(images.dataset, card)
    size = None if card.dataset == "unknown" else card.image_shape[-1]
    dataset = load_data(name, images, reporter, size=size)
    require_same_images(card, dataset)
    require_mirrored(card.model, dataset)
    return dataset


def require_same_images(card: Card, dataset: data.Dataset) -> None:
    """Raise unless the classifier takes the dataset's images and knows its classes.

    A foreign file says nothing of its images' size: there the channels alone are compared.
    """
    known = 1 if card.dataset == "unknown" else 3
    same = card.image_shape[:known] == dataset.image_shape[:known]
    if not same or card.num_classes != dataset.num_classes:
        shape = "x".join(map(str, card.image_shape))
        raise FuncrobustError(
            f"the checkpoint classifies {shape} images into {card.num_classes} classes, "
            f"but {dataset.name} has {'x'.join(map(str, dataset.image_shape))} in "
            f"{dataset.num_classes}: give another dataset or checkpoint"
        )


def require_mirrored(model: str, dataset: data.Dataset) -> None:
    """Raise where a network that looks at mirror images is to see what may not be mirrored."""
    flipped = model.endswith(FLIP) and model in models.names()
    if flipped and not dataset.mirrored:
        raise FuncrobustError(
            f"{model} looks at mirror images, and one of {dataset.name} may be of another class: "
            f"take {model.removesuffix(FLIP)}"
        )


def rehearse(model: Functional, dataset: data.Dataset) -> None:
    """Run the network once in training mode: what it cannot do shows now, not an epoch later."""

    def trained(x: Tensor) -> Tensor:
        return model.predict_train(model.params, model.buffers, x, key=key(0, "rehearse"))[0]

    _require_logits(trained, dataset.x_train[:2], dataset)


@torch.no_grad()
def require_taken(predict: Predict, params: Params, dataset: data.Dataset) -> None:
    """Run the network on two test images: raise, in a line, where it cannot take them.

    A card need not know what a network of one's own takes.
    """
    device = next(iter(params.values())).device if params else dataset.y_test.device
    _require_logits(lambda x: predict(params, x.to(device)), dataset.x_test[:2], dataset)


def _require_logits(network: Callable[[Tensor], Tensor], x: Tensor, dataset: data.Dataset) -> None:
    """Raise unless the network gives logits of the dataset's classes for its images x."""
    try:
        logits = network(data.as_float(x))
    except FuncrobustError:  # says itself what is wrong
        raise
    except (RuntimeError, ValueError, AssertionError) as error:  # torch's, and timm's own checks
        raise FuncrobustError(
            f"the network cannot take {dataset.name}'s images: {one_line(error)}"
        ) from None
    wanted = (len(x), dataset.num_classes)
    if logits.shape != wanted:
        raise FuncrobustError(
            f"the network gives {tuple(logits.shape)} for {len(x)} images, and not {wanted} logits "
            f"for {dataset.name}'s classes"
        )


class Chosen(NamedTuple):
    """Some images of a set, as the set has them, with their places in it."""

    places: Tensor
    """int64 (N,), ascending."""
    x: Tensor
    y: Tensor


def chosen_test_images(dataset: data.Dataset, examples: int | None, seed: int) -> Chosen:
    """Choose so many test images, each set of them equally likely, none twice; None: all.

    Not the first, which may be easier or harder than most. The choice is a function of the seed and
    of the two numbers, on every device; in the set's order, and all of it where it has no more.
    """
    return _chosen(dataset.x_test, dataset.y_test, examples, seed, "test images")


def chosen_training_images(dataset: data.Dataset, examples: int | None, seed: int) -> Chosen:
    """Choose so many training images, as `chosen_test_images` does test images."""
    return _chosen(dataset.x_train, dataset.y_train, examples, seed, "training images")


def _chosen(
    x: Tensor | data.Streamed, y: Tensor, examples: int | None, seed: int, purpose: str
) -> Chosen:
    places = torch.arange(len(y))
    if examples is not None and examples < len(y):
        places = torch.randperm(len(y), generator=generator(seed, purpose))[:examples]
        places = places.sort().values
    places = places.to(y.device)
    return Chosen(places, x[places], y[places])


def which_test_images(chosen: int, there: int) -> str:
    """Say how many test images were chosen, and how, for a table's title or a card's notes."""
    if chosen == there:
        return f"all {there} test images"
    return f"{chosen} random test images of {there}"


def wanted_class(to: str | None, names: Sequence[str]) -> int | None:
    """Read a class by name or number."""
    if to is None:
        return None
    if to in names:
        return names.index(to)
    if to.isdecimal() and int(to) < len(names):
        return int(to)
    raise FuncrobustError(f"unknown class {to!r}: choose from {', '.join(names)}, or a number")


def first_of_each_class(dataset: data.Dataset) -> tuple[Tensor, Tensor]:
    """Return the first test image (float) and label of every class that the test set has."""
    classes = dataset.y_test.unique()
    index = torch.stack([(dataset.y_test == c).nonzero()[0, 0] for c in classes])
    return data.as_float(dataset.x_test[index]), dataset.y_test[index]


STATISTICS = 8 * 2**30
"""Bytes that the statistics of streamed images' classes may take, as floats."""


def for_statistics(dataset: data.Dataset, most: int | None = None) -> tuple[Indexed, Tensor]:
    """Return training images whose mean and covariance stand for their classes'; and the labels.

    ``most`` of each class at most (None: all). Of streamed images 100 at most, and so few that
    `core.starts.GaussianStarts` can keep them; each class's are decoded when it is asked for.
    Raises `FuncrobustError` where those would be fewer than 10.
    """
    x, y = dataset.x_train, dataset.y_train
    if isinstance(x, data.Streamed):
        fit = STATISTICS // (dataset.num_classes * 4 * math.prod(dataset.image_shape))
        if fit < 10:
            height, width = dataset.image_shape[1:]
            raise FuncrobustError(
                f"Gaussian images of {dataset.num_classes} classes, {width}x{height}, need more "
                "memory than is taken here: use a smaller --image-size (in training --mixed 0 and "
                "another --start)"
            )
        most = min(100, fit, most or 100)
    if most is None:
        return x, y
    rows = torch.cat([(y == c).nonzero().squeeze(1)[:most] for c in y.unique().tolist()])
    return data.reordered(x, rows), y[rows]
