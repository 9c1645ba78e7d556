"""The networks of RobustBench's model zoo by name: its own classes, not copies.

Croce et al. 2021, arXiv:2010.09670. The library is asked for classes alone: it loads and fetches
nothing here.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from funcrobust.core.errors import FuncrobustError, did_you_mean, extra, one_line, unknown_name
from funcrobust.models.network import Network

PREFIX = "robustbench:"

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_THREATS = ("Linf", "L2", "corruptions")
_FORM = "robustbench:NAME (of cifar10/Linf) or robustbench:DATASET/THREAT/NAME"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class ZooEntry:
    """A network of the zoo, and what it is made for.

    ``address`` is where its weights are published; ``make`` builds it with random ones, its
    normalisation inside.
    """

    dataset: str
    threat_model: str
    name: str
    image_size: int
    num_classes: int
    address: str
    make: Callable[[], nn.Module]

    @property
    def place(self) -> str:
        """DATASET/THREAT/NAME, as the zoo lays its folders out."""
        return f"{self.dataset}/{self.threat_model}/{self.name}"

    @property
    def model(self) -> str:
        """Its whole name, for `funcrobust.models.build`."""
        return f"{PREFIX}{self.place}"


def zoo_entry(model: str) -> ZooEntry:
    """Find ``robustbench:NAME`` or ``robustbench:DATASET/THREAT/NAME`` in the zoo.

    Raises `FuncrobustError` where the library is missing, for a name that the zoo does not have,
    and for its networks that are not one file of weights.
    """
    parts = model.removeprefix(PREFIX).split("/")
    parts = ["cifar10", "Linf", *parts] if len(parts) == 1 else parts
    if len(parts) != 3 or not all(parts):
        raise FuncrobustError(f"{model!r} lacks a part, or has too many: {_FORM}")
    dataset, threat_model, name = parts
    if dataset not in _CLASSES:
        raise unknown_name("dataset of robustbench's zoo", dataset, _CLASSES)
    if threat_model not in _THREATS:
        raise unknown_name("threat model of robustbench's zoo", threat_model, _THREATS)
    tables = _tables()
    table = tables.get((dataset, threat_model), {})
    if name not in table:
        raise _not_in_the_zoo(name, (dataset, threat_model), tables)
    return _entry(dataset, threat_model, name, table[name])


def network(model: str) -> Network:
    """Return the row of a network of the zoo, for `funcrobust.models.build`."""
    entry = zoo_entry(model)

    def make(*, num_classes: int, in_channels: int) -> nn.Module:
        if (num_classes, in_channels) != (entry.num_classes, 3):
            raise FuncrobustError(
                f"{entry.model} takes RGB images and has {entry.num_classes} classes, and cannot "
                f"be built for {in_channels} channels and {num_classes} classes"
            )
        try:
            built = _transformable(entry.make())
        except Exception as error:  # some want a GPU, or packages that have moved since
            reason = one_line(f"{type(error).__name__}: {error}")
            raise FuncrobustError(f"{entry.model} does not build here ({reason})") from error
        built.normalized = True  # type: ignore[assignment]  # images in [0, 1] are its input
        return built

    return Network(make, entry.image_size, num_classes=entry.num_classes)


def _transformable(module: nn.Module) -> nn.Module:
    """Put torch's SiLU for the zoo's Swish, the same function.

    Swish spares memory by a derivative of its own, in the older form of ``autograd.Function`` that
    torch.func does not take. Gowal, Rebuffi and Wang's networks have it.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "Swish" and type(child).__module__.startswith(
                "robustbench."
            ):
                setattr(parent, name, nn.SiLU())
    return module


def _entry(dataset: str, threat_model: str, name: str, found: dict[str, Any]) -> ZooEntry:
    drive = found["gdrive_id"]
    timm = importlib.import_module("timm")
    # How robustbench's own load_model finds out that timm builds it.
    arch = f"{name}_{dataset}_{threat_model}".lower().replace("-", "_")
    classes = _CLASSES[dataset]
    if isinstance(drive, list):
        raise FuncrobustError(
            f"{PREFIX}{dataset}/{threat_model}/{name} is an ensemble of several files, which is "
            "not read here: load it with robustbench.load_model, and give the module to "
            "fr.functionalize"
        )
    make, address = found["model"], f"{_DRIVE}{drive}"
    if timm.is_model(arch):
        make = lambda: timm.create_model(arch, pretrained=False, num_classes=classes)  # noqa: E731
        address = timm.models.get_pretrained_cfg(arch).url
    elif not drive:
        raise FuncrobustError(
            f"{PREFIX}{dataset}/{threat_model}/{name} has no file of its own in robustbench's zoo: "
            "it is torchvision's network with torchvision's weights"
        )
    size = re.search(r"\d+$", found.get("preprocessing") or "")
    usual = 224 if dataset == "imagenet" else 32
    image_size = int(size.group()) if size else usual
    return ZooEntry(dataset, threat_model, name, image_size, classes, address, make)


def _not_in_the_zoo(
    name: str, where: tuple[str, str], tables: dict[tuple[str, str], Any]
) -> FuncrobustError:
    elsewhere = ["/".join((*place, name)) for place, table in tables.items() if name in table]
    hint = did_you_mean(name, tables.get(where, ()))
    if elsewhere:
        hint = f" (did you mean {' or '.join(map(repr, elsewhere))}?)"
    return FuncrobustError(
        f"robustbench's zoo has no {name!r} for {'/'.join(where)}{hint}: say {_FORM}, with a name "
        "of its leaderboards"
    )


# --- the library ----------------------------------------------------------------------------------


def _tables() -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    dicts = _import_zoo().model_dicts
    return {
        (dataset.value, threat.value): table
        for dataset, threats in dicts.items()
        for threat, table in threats.items()
    }


def _import_zoo() -> ModuleType:
    name = "robustbench.model_zoo"
    with (
        extra("robustbench", f"{PREFIX}NAME needs the library robustbench"),
        warnings.catch_warnings(action="ignore"),  # of timm's about its own modules
    ):
        _require_its_own_files()
        try:
            return importlib.import_module(name)
        except ImportError:
            return _import_beside_init(name)


def _require_its_own_files() -> None:
    """Refuse a robustbench that another library has written over.

    torchattacks' wheel brings an old copy of its files, and the one installed last is there.
    """
    try:
        files = importlib.metadata.files("robustbench") or []
    except importlib.metadata.PackageNotFoundError:
        return  # not installed as a package: nothing says what it should be
    for file in files:
        there = Path(str(file.locate()))
        if file.suffix != ".py" or file.hash is None or not there.is_file():
            continue
        digest = hashlib.new(file.hash.mode, there.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            raise FuncrobustError(
                f"{file} is not robustbench's own: another library (torchattacks) has written over "
                "it; mend it by pip install --force-reinstall --no-deps robustbench"
            )


def _import_beside_init(name: str) -> ModuleType:
    """Import a submodule without running its package's ``__init__``.

    robustbench's imports pkg_resources and autoattack for other purposes, and current releases of
    neither are found under these names. The zoo needs none of it.
    """
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no module named {package!r}")
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = bare
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]  # whoever imports the package itself is to get the whole of it
