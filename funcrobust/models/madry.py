"""The networks of the Madry lab's library ``robustness``: its own classes, not copies."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import Literal

from torch import hub, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.models.network import Network
from funcrobust.models.normalized import IMAGENET_MEAN, IMAGENET_STD


def import_robustness(submodule: str = "") -> ModuleType:
    """Import ``robustness``, or ``robustness.<submodule>``, with a current torchvision.

    Some of its modules import ``torchvision.models.utils``, which torchvision removed in 0.13.
    Where it is missing, a stand-in holding the one function they take from it is put in place
    first; an existing one is left alone.

    Raises `FuncrobustError` when the library does not import.
    """
    name = f"robustness.{submodule}" if submodule else "robustness"
    try:
        _install_torchvision_utils()
        return importlib.import_module(name)
    except ImportError as error:
        raise FuncrobustError(
            f"cannot import {name} ({error}): install it with `pip install robustness`"
        ) from error


def madry_resnet(
    depth: Literal[18, 50], *, num_classes: int = 10, in_channels: int = 3
) -> nn.Module:
    """Return robustness's CIFAR ResNet: normalised (B, 3, 32, 32) to logits (B, num_classes).

    Raises `FuncrobustError` for anything but RGB: the library fixes three input channels.
    """
    _require_rgb(f"robustness-resnet{depth} takes 32x32 RGB images", in_channels)
    resnet = import_robustness("cifar_models.resnet")
    factory = {18: resnet.ResNet18, 50: resnet.ResNet50}[depth]
    network: nn.Module = factory(num_classes=num_classes)
    return network


def madry_imagenet_resnet(
    arch: Literal["resnet18", "resnet50", "wide_resnet50_2"],
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    """Return robustness's ImageNet network: normalised (B, 3, H, W) to logits (B, num_classes).

    Its pooling is global, so 224x224 is only what it was made for: any size from 32x32 up fits.

    Raises `FuncrobustError` for anything but RGB: the library fixes three input channels.
    """
    _require_rgb(f"robustness's ImageNet {arch} takes RGB images", in_channels)
    factory = getattr(import_robustness("imagenet_models.resnet"), arch)
    network: nn.Module = factory(num_classes=num_classes)
    return network


def _require_rgb(what: str, in_channels: int) -> None:
    if in_channels != 3:
        raise FuncrobustError(
            f"{what} only, got in_channels={in_channels}: take a preact-... network"
        )


def _install_torchvision_utils() -> None:
    name = "torchvision.models.utils"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # torchvision itself is missing, which no stand-in cures
            raise
        stand_in = ModuleType(name, "Stand-in for a module that torchvision removed.")
        stand_in.load_state_dict_from_url = hub.load_state_dict_from_url  # type: ignore[attr-defined]
        sys.modules[name] = stand_in


def _cifar(depth: Literal[18, 50]) -> Network:
    return Network(partial(madry_resnet, depth), fixed_size=True)


def _imagenet(arch: Literal["resnet18", "resnet50", "wide_resnet50_2"]) -> Network:
    make = partial(madry_imagenet_resnet, arch)
    return Network(make, 224, num_classes=1000, mean=IMAGENET_MEAN, std=IMAGENET_STD)


NETWORKS = {
    # 11.17 M and 23.5 M parameters.
    "robustness-resnet18": _cifar(18),
    "robustness-resnet50": _cifar(50),
    # 11.69 M, 25.56 M and 68.88 M parameters.
    "robustness-imagenet-resnet18": _imagenet("resnet18"),
    "robustness-imagenet-resnet50": _imagenet("resnet50"),
    "robustness-imagenet-wrn50-2": _imagenet("wide_resnet50_2"),
}
