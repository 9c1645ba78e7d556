"""Checkpoints in the form that other libraries load: robustness's, and robustbench's zoo."""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from funcrobust import models
from funcrobust.checkpoints.card import Card
from funcrobust.checkpoints.zoo import is_zoo
from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.files import atomic_write
from funcrobust.reading import user_path

__all__ = ["FORMS", "Exported", "export", "place_of_export"]

FORMS = ("robustness", "robustbench")


@dataclass(frozen=True)
class Exported:
    """The file that was written, and the line of Python that loads it."""

    path: Path
    load: str


def export(module: nn.Module, card: Card, path: str | Path, *, to: str = "robustness") -> Exported:
    """Write a network for ``robustness`` or ``robustbench`` and say how it is loaded there.

    Args:
        module: a network with its normalisation inside, as `funcrobust.checkpoints.load` returns
            it with its ``card``. Its logits there are the ones here, for images in [0, 1].
        card: tells which of their networks it is.
        path: the ``.pt`` file to write. For robustbench a folder will do: the file goes to the
            place in it where ``load_model(..., model_dir=folder)`` looks.
        to: ``"robustness"`` takes any network. ``"robustbench"`` takes those that its zoo has a
            class for, with a normalisation that this class can hold.

    The file holds tensors, dicts and numbers only, and is written whole or not at all.
    `funcrobust.checkpoints.load` reads it too.

    Raises `FuncrobustError` for an unknown form, a network that robustbench has no class for, and
    files that cannot be written.
    """
    path = place_of_export(card, path, to=to)
    if to == "robustness":
        return _export_robustness(module, card, path)
    return _export_robustbench(module, card, path)


def place_of_export(card: Card, path: str | Path, *, to: str = "robustness") -> Path:
    """Return the file that `export` writes: ``path``, or robustbench's place in that folder.

    Raises `FuncrobustError` for an unknown form, a name that is no ``.pt`` file's, and a network
    that robustbench has no class for.
    """
    path = user_path(path)
    if to not in FORMS:
        raise unknown_name("form", to, FORMS)
    if to == "robustness":
        return _require_pt(path, "a name")
    place = _entry(card).place
    return _require_pt(path / place if _is_folder(path) else path, "a folder, or a name")


def _is_folder(path: Path) -> bool:
    return not path.suffix or path.is_dir()


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(path, buffer.getvalue())


def _require_pt(path: Path, what: str) -> Path:
    if path.suffix != ".pt":
        raise FuncrobustError(f"export writes a .pt file, got {path}: give {what} that ends in .pt")
    return path


def _parts(module: nn.Module, card: Card) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the bare network and its normalisation (C,), which is none for one with its own."""
    if isinstance(module, models.Normalized):
        return module.net, module.mean.flatten().cpu(), module.std.flatten().cpu()
    channels = card.image_shape[0]
    return module, torch.zeros(channels), torch.ones(channels)


def _weights(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    # Copies: a view would take the whole of what it is a view of into the file.
    tensors = network.state_dict().items()
    return {
        f"{prefix}{n}": t.cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors
    }


# --- robustness ---------------------------------------------------------------------------------

_MADRY = {  # its name for the architecture, the data set that makes it, and how many classes
    "robustness-resnet18": ("resnet18", "CIFAR()", 10),
    "robustness-resnet50": ("resnet50", "CIFAR()", 10),
    "robustness-imagenet-resnet18": ("resnet18", "ImageNet('')", 1000),
    "robustness-imagenet-resnet50": ("resnet50", "ImageNet('')", 1000),
    "robustness-imagenet-wrn50-2": ("wide_resnet50_2", "ImageNet('')", 1000),
}


def _export_robustness(module: nn.Module, card: Card, path: Path) -> Exported:
    """Write the state of an ``AttackerModel`` in ``DataParallel``, as its trainer saves it.

    The normaliser's buffers are in the file, so that those of the data set given on loading are
    overridden.
    """
    network, mean, std = _parts(module, card)
    plain = _takes_latent(network)
    weights = _weights(network, "model." if plain else "model.model.")
    normalizer = {"new_mean": mean[:, None, None], "new_std": std[:, None, None]}
    state = {
        **{f"module.normalizer.{name}": tensor for name, tensor in normalizer.items()},
        **{f"module.{name}": tensor for name, tensor in weights.items()},
        **{f"module.attacker.normalize.{name}": tensor for name, tensor in normalizer.items()},
        **{f"module.attacker.{name}": tensor for name, tensor in weights.items()},
    }
    _write(path, {"model": state, "epoch": 0})
    bare = ".net" if isinstance(module, models.Normalized) else ""
    arguments = _robustness_arguments(card, plain, bare)
    return Exported(path, f"make_and_restore_model({arguments}, resume_path={str(path)!r})")


def _takes_latent(network: nn.Module) -> bool:
    """Tell whether a network understands what ``AttackerModel`` passes besides the images.

    For one that does not, the library has a wrapper, ``add_custom_forward=True``: one level more
    in the names.
    """
    parameters = inspect.signature(network.forward).parameters.values()
    return any(p.name == "with_latent" or p.kind is p.VAR_KEYWORD for p in parameters)


def _robustness_arguments(card: Card, plain: bool, bare: str) -> str:
    arch, dataset, classes = _MADRY.get(card.model, ("", "CIFAR()", 0))
    if classes == card.num_classes:
        return f"arch={arch!r}, dataset={dataset}"
    channels = card.image_shape[0]
    if channels != 3:
        dataset = f"SimpleNamespace(mean=torch.zeros({channels}), std=torch.ones({channels}))"
    sizes = f"num_classes={card.num_classes}, in_channels={channels}"
    network = f"funcrobust.models.build({card.model!r}, {sizes})"
    custom = "" if plain else ", add_custom_forward=True"
    return f"arch={network}{bare}, dataset={dataset}{custom}"


# --- robustbench --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A model of the zoo, by the arguments of ``load_model``, whose class is one of ours.

    ``normalisation`` is what the class has fixed; None where it is read from the file.
    """

    dataset: str
    threat_model: str
    name: str
    image_size: int = 32
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def place(self) -> Path:
        return Path(self.dataset, self.threat_model, f"{self.name}.pt")


def _imagenet_entry(name: str) -> _Entry:
    fixed = (models.IMAGENET_MEAN, models.IMAGENET_STD)
    return _Entry("imagenet", "Linf", name, 224, fixed)


# The threat model is a folder's name in the zoo: it does not enter the network, and what is
# measured is an argument of `benchmark`. So among equal classes one with buffers for the
# normalisation is taken, whatever it was trained against.
_ZOO = {
    ("preact-resnet18", 10): _Entry("cifar10", "L2", "Rice2020Overfitting"),
    ("preact-resnet18", 100): _Entry("cifar100", "Linf", "Rice2020Overfitting"),
    ("wrn-28-10", 10): _Entry("cifar10", "L2", "Rony2019Decoupling"),
    ("robustness-resnet18", 10): _Entry("cifar10", "corruptions", "Modas2021PRIMEResNet18"),
    ("robustness-resnet18", 100): _Entry("cifar100", "corruptions", "Modas2021PRIMEResNet18"),
    ("robustness-resnet50", 10): _Entry("cifar10", "Linf", "Engstrom2019Robustness"),
    ("robustness-imagenet-resnet18", 1000): _imagenet_entry("Salman2020Do_R18"),
    ("robustness-imagenet-resnet50", 1000): _imagenet_entry("Salman2020Do_R50"),
    ("robustness-imagenet-wrn50-2", 1000): _imagenet_entry("Salman2020Do_50_2"),
}


def _export_robustbench(module: nn.Module, card: Card, path: Path) -> Exported:
    """Write the bare network's state, with its normalisation where the zoo's class reads one."""
    entry = _entry(card)
    network, mean, std = _parts(module, card)
    state = _weights(network)
    if entry.normalisation is None:
        state |= {"mu": mean.view(1, -1, 1, 1), "sigma": std.view(1, -1, 1, 1)}
    else:
        _require_normalisation(entry, mean, std)
    _write(path, {"state_dict": state})
    return Exported(path, _robustbench_line(entry, path))


def _entry(card: Card) -> _Entry:
    entry = _ZOO.get((card.model, card.num_classes))
    if is_zoo(card.model):
        raise FuncrobustError(
            f"{card.model} is robustbench's own network, for which nothing is written: hand the "
            "network that funcrobust.checkpoints.load returns to robustbench.benchmark as it is, "
            "or export it --to robustness"
        )
    if entry is not None and card.image_shape == (3, entry.image_size, entry.image_size):
        return entry
    shape = "x".join(map(str, card.image_shape))
    raise FuncrobustError(
        f"robustbench's zoo has no class for a {card.model} of {shape} images and "
        f"{card.num_classes} classes: export it --to robustness, or hand the network that "
        "funcrobust.checkpoints.load returns to robustbench.benchmark as it is"
    )


def _require_normalisation(entry: _Entry, mean: Tensor, std: Tensor) -> None:
    # It cannot be folded into the first convolution: its padding is zero after normalising, and
    # zero is another colour under another mean.
    wanted = torch.tensor(entry.normalisation)
    if not torch.allclose(torch.stack((mean, std)), wanted, rtol=0, atol=1e-6):
        numbers = " / ".join(str(tuple(round(n, 4) for n in row.tolist())) for row in (mean, std))
        fixed = " / ".join(map(str, entry.normalisation or ()))
        raise FuncrobustError(
            f"robustbench's {entry.name} normalises by mean / std {fixed}, and this network by "
            f"{numbers}: train with those numbers, or export it --to robustness"
        )


def _robustbench_line(entry: _Entry, path: Path) -> str:
    """Say how to load the file, and where to put it first if it lies elsewhere."""
    if path.parts[-3:] == entry.place.parts:
        folder, note = str(path.parents[2]), ""
    else:
        folder, note = "DIR", f"  # after moving it to DIR/{entry.place.as_posix()}"
    return (
        f"load_model({entry.name!r}, model_dir={folder!r}, dataset={entry.dataset!r}, "
        f"threat_model={entry.threat_model!r}){note}"
    )
