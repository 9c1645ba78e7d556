"""Networks by name: those in the ``NETWORKS`` tables of this folder's files, and a user's own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

import torch
from torch import nn

from funcrobust.core.errors import FuncrobustError, did_you_mean, require_count
from funcrobust.models.custom import custom_network
from funcrobust.models.network import Network
from funcrobust.models.normalized import Normalized
from funcrobust.models.robustbench_zoo import PREFIX
from funcrobust.models.robustbench_zoo import network as zoo_network


def names() -> tuple[str, ...]:
    """Return the built-in names.

    `build` also takes ``package.module:factory`` and ``robustbench:NAME``.
    """
    return tuple(sorted(_networks()))


def usual_image_size(name: str) -> int:
    """Return the height and width that a network is made for; 32 for one of your own."""
    return _row(name).image_size


def names_code(name: str) -> bool:
    """Tell whether a network's name says whose code to import, which no file may choose.

    ``package.module:factory`` does, and ``robustbench:NAME``.
    """
    return ":" in name


def is_factory(name: str) -> bool:
    """Tell whether a network's name is a ``package.module:factory`` of a user's own."""
    return names_code(name) and not name.startswith(PREFIX)


def _networks() -> dict[str, Network]:
    """Every family's table in one: a family is a file of this folder that has ``NETWORKS``."""
    folder = importlib.import_module(__name__.rpartition(".")[0])
    found: dict[str, Network] = {}
    for file in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{file.name}")
        found |= getattr(module, "NETWORKS", {})
    return found


def _row(name: str) -> Network:
    if name.startswith(PREFIX):
        return zoo_network(name)
    if is_factory(name):
        # A user's factory fixes the channels itself.
        return Network(lambda *, num_classes, in_channels: custom_network(name, num_classes))  # noqa: ARG005
    networks = _networks()
    if name not in networks:
        raise FuncrobustError(
            f"unknown model {name!r}{did_you_mean(name, networks)}: choose one of "
            f"{', '.join(names())}, or name your own as package.module:factory"
        )
    return networks[name]


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
        name: one of `models.names`, or ``package.module:factory`` for a network of your own, which
            is wrapped in `Normalized` unless it has an attribute ``normalized = True``; or
            ``robustbench:NAME`` for one of RobustBench's zoo, which normalises by itself.
        num_classes: number of logits; by default what the network is usual for: 10, or ImageNet's
            1000.
        in_channels: channels of the images; a factory of your own fixes them itself.
        mean: channel means of the data in [0, 1]; by default those that the network is usual
            for (CIFAR-10's, or ImageNet's), and 0.5 for any number of channels but three.
        std: channel standard deviations, with the same defaults.
        seed: the initial weights depend on it alone; torch's global generator is left as it was.

    The network is made on the CPU, so that a seed means the same weights on every machine, and
    in training mode; under ``torch.device("meta")`` it is made there, without memory.

    Raises `FuncrobustError` for unknown names, factories that fail, and sizes that do not fit.

    >>> build("preact-tiny")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    row = _row(name)
    num_classes = row.num_classes if num_classes is None else num_classes
    require_count("num_classes", num_classes, minimum=1)
    require_count("in_channels", in_channels, minimum=1)
    require_count("seed", seed)
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.device(device), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every CUDA generator of the caller.
        torch.default_generator.manual_seed(seed)
        network = row.make(num_classes=num_classes, in_channels=in_channels)
        if getattr(network, "normalized", False) is True:
            return network
        default = (row.mean, row.std) if in_channels == 3 else ((0.5,) * in_channels,) * 2
        mean = default[0] if mean is None else mean
        std = default[1] if std is None else std
        if len(mean) != in_channels:
            raise FuncrobustError(
                f"mean and std need one number for each of {in_channels} channels, got {len(mean)}"
            )
        return Normalized(network, mean, std, row.image_size if row.fixed_size else None)
