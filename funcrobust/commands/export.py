"""Write a checkpoint in the form that robustness or robustbench loads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.marks import Lies
from funcrobust.running.options import Options
from funcrobust.running.places import (
    CheckpointName,
    require_room,
    require_writable,
    say_replaced,
)

if TYPE_CHECKING:
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


@dataclass(frozen=True, kw_only=True)
class Export(Options):
    """Export."""

    checkpoint: CheckpointName = field(kw_only=False)
    """File, run folder, shipped name or robustbench:NAME."""
    file: Annotated[Path, Lies(require_room)] = field(kw_only=False)
    """The .pt to write; or a folder, for robustbench."""
    to: Literal["robustness", "robustbench"] = "robustness"
    """The library that is to load it."""
    model: str | None = None
    """Architecture of a foreign .pt file, the factory of a checkpoint of your own network, or
    NAME-flip of a checkpoint of NAME."""


def run(options: Export, reporter: Reporter) -> Path:
    """Write the checkpoint in the other form, and say how it is loaded there."""
    from funcrobust import checkpoints
    from funcrobust.checkpoints import export
    from funcrobust.running.classifier import say_if_state

    _require_another(options.file, options.checkpoint)
    say_if_state(options.checkpoint, reporter)
    module, card = checkpoints.load(
        options.checkpoint, model=options.model, progress=reporter.progress_callback()
    )
    file = export.place_of_export(card, options.file, to=options.to)
    _require_another(file, options.checkpoint)
    require_writable(file)
    say_replaced(file, reporter)
    exported = export.export(module, card, file, to=options.to)
    reporter.say(f"{options.checkpoint}: {card.model}, written for {options.to}")
    reporter.say(f"file  {exported.path}")
    reporter.say(f"load  {exported.load}")
    for line in HINTS[options.to]:
        reporter.say(f"      {line}")
    return exported.path


def _require_another(file: Path, checkpoint: str) -> None:
    """Refuse to replace what is exported: it may be all that there is of it."""
    from funcrobust import checkpoints

    if checkpoints.is_zoo(checkpoint) or not os.path.exists(file):  # noqa: PTH110
        return
    if file.samefile(checkpoints.resolve(checkpoint)):
        raise FuncrobustError(f"{file} is what is to be exported itself: give another name")
