"""Presets: what a command does when it is told nothing more. Each number's reason is beside it."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.machine import pick_precision
from funcrobust.running.options import CureOptions

CURE_PRESETS: dict[str, dict[str, Any]] = {
    # Two CPU cores. docs/recipes.md has what each choice gained: the average of the weights reads
    # well long before the learning rate is low, bfloat16 is 1.5 times as fast where the CPU has it,
    # and CURE on a quarter of every eighth batch costs an eighth of the time, not all of it.
    "cpu": {
        "model": "preact-tiny", "epochs": 5, "attack": "n-fgsm", "precision": "auto", "ema": 0.995,
        "lam": 0.5, "cure_every": 8, "cure_fraction": 0.25,
    },
    # For the least time to 45 % PGD-50-10 on one data-centre GPU: 2.8e15 floating-point operations.
    "fast": {
        "model": "preact-resnet18", "epochs": 8, "batch_size": 256, "lr_max": 0.4, "ema": 0.995,
        "lam": 0.5, "cure_every": 4, "cure_fraction": 0.25, "precision": "bf16",
        "robust_examples": 1000, "evaluate_examples": 10_000,
    },
    # For the most robustness in ten GPU minutes: a smooth activation, TRADES over two PGD steps, a
    # long average.
    "strong": {
        "model": "preact-resnet18-silu", "epochs": 60, "batch_size": 256, "lr_max": 0.2,
        "ema": 0.9995, "attack": "pgd", "attack_steps": 2, "alpha": 8 / 255, "trades": 5.0,
        "lam": 0.5, "cure_every": 4, "cure_fraction": 0.25, "precision": "bf16",
        "robust_examples": 1000, "evaluate_examples": 10_000,
    },
    # 30 epochs: the long schedule of fast adversarial training (Wong et al. 2020), with CURE.
    "paper-short": {
        "model": "preact-resnet18", "epochs": 30, "lr_schedule": "cyclic", "lr_max": 0.2,
        "precision": "bf16", "robust_examples": 1000, "evaluate_examples": 10_000,
    },
    # The CURE document's command: --delta classic --lr-schedule piecewise --lr-max 0.1 --lr-min 0
    # --opt SGD --lambda 10 --h 3 --epochs 200.
    "paper-long": {
        "model": "preact-resnet18", "epochs": 200, "lr_schedule": "piecewise", "lr_max": 0.1,
        "lam": 10.0, "h": 3.0, "precision": "bf16", "robust_examples": 1000,
        "evaluate_examples": 10_000,
    },
    # 1400 images of 8x8 in seconds. At 8/255 even standard training is robust on them, so the
    # ball is wider.
    "digits": {
        "dataset": "digits", "model": "preact-tiny", "epochs": 20, "batch_size": 64,
        "epsilon": 0.15, "lr_max": 0.05, "ema": 0.95, "cure_every": 2,
    },
}  # fmt: skip

Options = TypeVar("Options", bound=Any)


def auto_preset(dataset: str, device: torch.device) -> str:
    """Return the preset that fits the data and the machine."""
    if dataset == "digits":
        return "digits"
    return "fast" if device.type == "cuda" else "cpu"


def cure_options(given: dict[str, Any], preset: str, device: torch.device) -> CureOptions:
    """Fill what was not given from the preset ("auto" picks one), then from the defaults."""
    if preset == "auto":
        preset = auto_preset(given.get("dataset", "cifar10"), device)
    if preset not in CURE_PRESETS:
        close = difflib.get_close_matches(preset, [*CURE_PRESETS, "auto"], 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        known = ", ".join(["auto", *CURE_PRESETS])
        raise FuncrobustError(f"unknown preset {preset!r}{hint}: choose from {known}")
    options = fill(CureOptions(preset=preset), CURE_PRESETS[preset] | given)
    return replace(options, precision=pick_precision(options.precision, device))


def fill(options: Options, given: dict[str, Any]) -> Options:
    """Replace the fields that are given."""
    known = {f.name for f in fields(options)}
    return replace(options, **{name: value for name, value in given.items() if name in known})
