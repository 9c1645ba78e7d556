"""``export``: a checkpoint for other libraries."""

from __future__ import annotations

from pathlib import Path

from funcrobust import checkpoints, exports
from funcrobust.report.console import Reporter


def export(
    checkpoint: str, file: Path, reporter: Reporter, *, to: str, model: str | None = None
) -> Path:
    """Write a checkpoint in the form of ``to``, and say how it is loaded there."""
    module, card = checkpoints.load(checkpoint, model=model)
    exported = exports.export(module, card, file, to=to)
    reporter.say(f"{checkpoint}: {card.model}, written for {to}")
    reporter.say(f"file  {exported.path}")
    reporter.say(f"load  {exported.load}")
    return exported.path
