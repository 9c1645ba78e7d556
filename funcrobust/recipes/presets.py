"""Presets: what a command does when it is told nothing more. Each number's reason is beside it."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from funcrobust.errors import FuncrobustError
from funcrobust.recipes.options import CureOptions

CURE_PRESETS: dict[str, dict[str, Any]] = {
    # Two CPU cores: 40 s an epoch for the attack and the update, half as much again for CURE on
    # a quarter of the batch; 29 % PGD-20 after two epochs.
    "cpu": {"model": "preact-tiny", "epochs": 2, "cure_fraction": 0.25},
    # The 30-epoch schedule of fast adversarial training (Wong et al. 2020).
    "cuda": {
        "model": "preact-resnet18", "epochs": 30, "precision": "bf16", "robust_examples": 10_000,
        "evaluate_examples": 10_000,
    },
    # 1400 images of 8x8 in seconds. At 8/255 even standard training is robust on them, so the
    # ball is wider.
    "digits": {
        "dataset": "digits", "model": "preact-tiny", "epochs": 20, "batch_size": 64,
        "epsilon": 0.15, "lr_max": 0.05,
    },
}  # fmt: skip

Options = TypeVar("Options", bound=Any)


def auto_preset(dataset: str, device: torch.device) -> str:
    """Return the preset that fits the data and the machine."""
    if dataset == "digits":
        return "digits"
    return "cuda" if device.type == "cuda" else "cpu"


def cure_options(given: dict[str, Any], preset: str, device: torch.device) -> CureOptions:
    """Fill what was not given from the preset ("auto" picks one), then from the defaults."""
    if preset == "auto":
        preset = auto_preset(given.get("dataset", "cifar10"), device)
    if preset not in CURE_PRESETS:
        close = difflib.get_close_matches(preset, [*CURE_PRESETS, "auto"], 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        known = ", ".join(["auto", *CURE_PRESETS])
        raise FuncrobustError(f"unknown preset {preset!r}{hint}: choose from {known}")
    return fill(CureOptions(preset=preset), CURE_PRESETS[preset] | given)


def fill(options: Options, given: dict[str, Any]) -> Options:
    """Replace the fields that are given."""
    known = {f.name for f in fields(options)}
    return replace(options, **{name: value for name, value in given.items() if name in known})
