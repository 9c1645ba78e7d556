"""Presets: what ``cure-train`` does when it is told nothing more, each number's reason beside it.

A preset is the values in which it differs from the class `CureTrain`, which is the preset ``cpu``.
"""

from __future__ import annotations

from typing import Any

from funcrobust.running.optimiser import TYPICAL

_ONE_GPU: dict[str, Any] = {
    "opt": "SGD", **TYPICAL["SGD"], "precision": "bf16", "padding": 4, "robust_examples": 1000,
    "evaluate_examples": 10_000,
}  # fmt: skip
_MUON: dict[str, Any] = {
    "opt": "Muon", **TYPICAL["Muon"], "lr_max": 7e-3, "batch_size": 512, "padding": 3, "ema": 0.998,
    "attack": "pgd", "attack_steps": 2, "trades": 5.0, "compile": False,
}  # fmt: skip
_PAPERS: dict[str, Any] = _ONE_GPU | {
    "model": "preact-resnet18", "attack": "rs-fgsm", "lam": 1.0, "cure_every": 1,
    "cure_fraction": 1.0, "ema": 0.0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # Two CPU cores. docs/recipes.md has what each choice gained: Muon is worth more than twice the
    # epochs, images shifted by one pixel and not by four two epochs, the average of the weights
    # reads well long before the learning rate is low, bfloat16 is 1.5 times as fast where the CPU
    # has it, and CURE on a quarter of every eighth batch costs an eighth of the time, not all.
    "cpu": {},
    # For a robust network in minutes on one GPU. Without CURE it trained cifar10-linf-resnet14, of
    # which PGD-50-10 leaves 52.7 %: 153 s of updates on an H100 (docs/recipes.md, "On one GPU").
    # Muon gains five points there; compiling an update takes longer than all of the training.
    "fast": _ONE_GPU | _MUON | {"model": "preact-resnet14-silu", "epochs": 30, "watch_every": 5},
    # ResNet-18, twice as long, and CURE twice as often: set from `fast`, and not measured.
    "strong": _ONE_GPU | _MUON | {
        "model": "preact-resnet18-silu", "epochs": 60, "cure_every": 4, "watch_every": 10,
    },
    # 30 epochs: the long schedule of fast adversarial training (Wong et al. 2020), with CURE.
    "paper-short": _PAPERS | {"epochs": 30, "lr_schedule": "cyclic"},
    # The CURE document's command: --delta classic --lr-schedule piecewise --lr-max 0.1 --lr-min 0
    # --opt SGD --lambda 10 --h 3 --epochs 200.
    "paper-long": _PAPERS | {
        "epochs": 200, "lr_schedule": "piecewise", "lr_max": 0.1, "lam": 10.0,
    },
    # 1400 images of 8x8 in seconds. At 8/255 even standard training is robust on them, so the
    # ball is wider.
    "digits": {
        "dataset": "digits", "epochs": 20, "batch_size": 64, "attack": "rs-fgsm", "epsilon": 0.15,
        "opt": "SGD", **TYPICAL["SGD"], "lr_max": 0.05, "ema": 0.95, "lam": 1.0,
        "cure_every": 2, "cure_fraction": 1.0, "precision": "fp32",
    },
}  # fmt: skip


DOCUMENTED: dict[str, tuple[str, ...]] = {
    "paper-long": ("delta", "lr_schedule", "lr_max", "lr_min", "opt", "lam", "h", "epochs"),
}
"""What the command that a document prints says of the preset that is all of it."""


def fitting(dataset: str | None, device: str) -> str:
    """Return the preset that fits the data and the machine."""
    if dataset == "digits":
        return "digits"
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device == "cpu" else "fast"
