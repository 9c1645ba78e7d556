"""``export``: a checkpoint for other libraries."""

from __future__ import annotations

from pathlib import Path

from funcrobust import checkpoints
from funcrobust.checkpoints import export as exports
from funcrobust.report.console import Reporter

HINTS = {
    "robustness": (
        "with torchvision >= 0.13 import the library through ours, which mends its imports:",
        "from funcrobust.models import import_robustness",
        "make_and_restore_model = import_robustness('model_utils').make_and_restore_model",
        "CIFAR = import_robustness('datasets').CIFAR",
        "(it calls .cuda() whatever the machine: it needs a GPU)",
    ),
    "robustbench": ("from robustbench.utils import load_model",),
}
"""What the line that loads the file takes for granted."""


def export(
    checkpoint: str, file: Path, reporter: Reporter, *, to: str, model: str | None = None
) -> Path:
    """Write a checkpoint in the form of ``to``, and say how it is loaded there."""
    module, card = checkpoints.load(checkpoint, model=model)
    exported = exports.export(module, card, file, to=to)
    reporter.say(f"{checkpoint}: {card.model}, written for {to}")
    reporter.say(f"file  {exported.path}")
    reporter.say(f"load  {exported.load}")
    for line in HINTS.get(to, ()):
        reporter.say(f"      {line}")
    return exported.path
