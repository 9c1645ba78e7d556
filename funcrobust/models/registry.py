"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.models.custom import custom_network
from funcrobust.models.madry import madry_imagenet_resnet, madry_resnet
from funcrobust.models.normalized import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalized,
)
from funcrobust.models.preact_resnet import preact_resnet
from funcrobust.models.wide_resnet import wide_resnet

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # 0.31 M parameters. On 2 CPU cores an RS-FGSM step of batch 128 takes 105 ms, and two epochs
    # of CIFAR-10 give 29.8 % against PGD-20.
    "preact-tiny": partial(
        preact_resnet, widths=(32, 64, 128), blocks=(1, 1, 1), stem="4x4-stride2"
    ),
    # 1.23 M parameters: twice as wide.
    "preact-small": partial(
        preact_resnet, widths=(64, 128, 256), blocks=(1, 1, 1), stem="4x4-stride2"
    ),
    # 11.17 M parameters: the network of fast adversarial training (Wong et al. 2020).
    "preact-resnet18": partial(preact_resnet, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)),
    # 36.5 M parameters: the large network of the robustness literature.
    "wrn-28-10": partial(wide_resnet, depth=28, widen=10),
    # 11.17 M and 23.5 M parameters: the Madry lab's own.
    "robustness-resnet18": partial(madry_resnet, 18),
    "robustness-resnet50": partial(madry_resnet, 50),
    # 11.69 M, 25.56 M and 68.88 M parameters: theirs for ImageNet.
    "robustness-imagenet-resnet18": partial(madry_imagenet_resnet, "resnet18"),
    "robustness-imagenet-resnet50": partial(madry_imagenet_resnet, "resnet50"),
    "robustness-imagenet-wrn50-2": partial(madry_imagenet_resnet, "wide_resnet50_2"),
}
# Smooth twins. With ReLU the input gradient is piecewise constant but for the softmax: a finite
# difference of it sees kinks, which no derivative in θ knows of. With SiLU the derivatives of CURE
# and ψ are the whole truth, for 20 % more time.
_NETWORKS |= {
    f"{name}-silu": partial(_NETWORKS[name], activation=nn.SiLU)
    for name in ("preact-tiny", "preact-small", "preact-resnet18")
}
_IMAGE_SIZES = {"robustness-resnet18": 32, "robustness-resnet50": 32}


def names() -> tuple[str, ...]:
    """Return the built-in names; `build` takes ``package.module:factory`` as well."""
    return tuple(_NETWORKS)


def usual_image_size(name: str) -> int:
    """Return the height and width that a network is made for: 224 for ImageNet's, else 32."""
    return 224 if _is_imagenet(name) else 32


def _is_imagenet(name: str) -> bool:
    return name.startswith("robustness-imagenet-")


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a freshly initialised network: x (B, C, H, W) in [0, 1] to logits (B, num_classes).

    Args:
        name: one of `names`, or ``package.module:factory`` for a network of your own, which is
            wrapped in `Normalized` unless it has an attribute ``normalized = True``.
        num_classes: number of logits; by default 10, and 1000 for the ImageNet networks.
        in_channels: channels of the images; a factory of your own fixes them itself.
        mean: channel means of the data in [0, 1]; by default CIFAR-10's for three channels,
            ImageNet's for the ImageNet networks, and 0.5 for any other number of channels.
        std: channel standard deviations, with the same defaults.
        seed: the initial weights depend on it alone; torch's global generator is left as it was.

    The network is made on the CPU, so that a seed means the same weights on every machine, and
    in training mode; under ``torch.device("meta")`` it is made there, without memory.

    Raises `FuncrobustError` for unknown names, factories that fail, and sizes that do not fit.

    >>> build("preact-tiny")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if num_classes is None:
        num_classes = 1000 if _is_imagenet(name) else 10
    require_count("num_classes", num_classes, minimum=1)
    require_count("in_channels", in_channels, minimum=1)
    require_count("seed", seed)
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.device(device), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every CUDA generator of the caller.
        torch.default_generator.manual_seed(seed)
        network = _network(name, num_classes, in_channels)
        if getattr(network, "normalized", False) is True:
            return network
        default = _default_normalisation(name, in_channels)
        mean = default[0] if mean is None else mean
        std = default[1] if std is None else std
        if len(mean) != in_channels:
            raise FuncrobustError(
                f"mean and std need one number for each of {in_channels} channels, got {len(mean)}"
            )
        return Normalized(network, mean, std, _IMAGE_SIZES.get(name))


def _default_normalisation(
    name: str, in_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if in_channels != 3:
        return (0.5,) * in_channels, (0.5,) * in_channels
    return (IMAGENET_MEAN, IMAGENET_STD) if _is_imagenet(name) else (CIFAR10_MEAN, CIFAR10_STD)


def _network(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if ":" in name:
        return custom_network(name, num_classes)
    if name not in _NETWORKS:
        close = difflib.get_close_matches(name, _NETWORKS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise FuncrobustError(
            f"unknown model {name!r}{hint}: choose one of {', '.join(_NETWORKS)}, or name your "
            "own as package.module:factory"
        )
    return _NETWORKS[name](num_classes=num_classes, in_channels=in_channels)
