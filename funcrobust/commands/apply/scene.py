"""What a task is given: a classifier, images with their classes, and what the user asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from funcrobust import data
from funcrobust.commands.apply.options import Apply
from funcrobust.commands.apply.pictures import read_images
from funcrobust.core.network.functional import functionalize
from funcrobust.core.randomness import generator
from funcrobust.core.tasks import Features, Scene
from funcrobust.core.walks import AnyWalk, Walks
from funcrobust.models import head, representation
from funcrobust.running.classifier import Classifier
from funcrobust.running.dataset import for_statistics, wanted_class
from funcrobust.running.machine import to_device


def make_scene(
    walks: Walks, classifier: Classifier, dataset: data.Dataset, options: Apply
) -> Scene:
    """Put together what every task needs; a user's own images in place of the test set's."""
    # Not the first: they may be easier or harder than most.
    draw = generator(options.seed, "apply/images", 0, dataset.y_test.device)
    chosen = torch.randperm(len(dataset.y_test), generator=draw, device=draw.device)
    chosen = chosen[: options.examples]
    shape = dataset.image_shape
    scene = scene_of(
        classifier.module, dataset, dataset.x_test[chosen], dataset.y_test[chosen],
        count=options.examples, target=wanted_class(options.to, dataset.class_names),
        walk=options.walk(walks, shape, classifier.card.restoring_step), seed=options.seed,
    )  # fmt: skip
    if not options.image:
        return scene
    x = read_images(options.image, shape, options.max_bytes).to(scene.x.device)
    return replace(scene, x=x, y=scene.sees(x), own=True)


def scene_of(
    module: nn.Module,
    dataset: data.Dataset,
    x: Tensor,
    y: Tensor,
    *,
    count: int,
    walk: AnyWalk,
    target: int | None = None,
    seed: int = 0,
) -> Scene:
    """Return a scene with a classifier and images (N, C, H, W) of the dataset, on its device."""
    device = dataset.x_train.device

    def features() -> Features:
        network = functionalize(representation(module)).to(device)
        return Features(network, head(module).weight.detach().to(device))

    return Scene(
        model=to_device(functionalize(module), device), features=features, x=data.as_float(x), y=y,
        own=False, count=count, target=target, class_names=dataset.class_names,
        train=for_statistics(dataset), mirrored=dataset.mirrored, walk=walk, seed=seed,
    )  # fmt: skip
