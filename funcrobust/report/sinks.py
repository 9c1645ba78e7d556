"""Where a run's records go besides metrics.jsonl: TensorBoard or Weights & Biases, if asked for."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from funcrobust.core.errors import FuncrobustError, extra
from funcrobust.report.runs import RunFolder

Sink = Callable[[Mapping[str, Any]], None]


def open_sink(name: str, run: RunFolder, command: str) -> Sink:
    """Open the sink called "none", "tensorboard" or "wandb".

    TensorBoard's event files go into the run folder. Raises `FuncrobustError` for another name, or
    when the library is not installed.
    """
    require_sink(name)
    if name == "none":
        return lambda record: None  # noqa: ARG005
    with extra(name, _NEEDED.format(name)):  # found, and yet it may not import
        return _OPENERS[name](run, command)


def require_sink(name: str) -> None:
    """Raise `FuncrobustError` for a sink that `open_sink` could not open; nothing is imported."""
    if name == "none":
        return
    if name not in _OPENERS:
        known = ", ".join(["none", *_OPENERS])
        raise FuncrobustError(f"unknown --log {name!r}: use {known}")
    library = _LIBRARIES[name]
    with extra(name, _NEEDED.format(name)):
        if not _is_there(library):
            raise ImportError(f"No module named {library!r}")


def _is_there(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # imported already, by somebody who gave it no spec
        return True


def _tensorboard(run: RunFolder, _: str) -> Sink:
    from tensorboardX import SummaryWriter

    # Its own flush() leaves the newest events in a queue: those go out every 5 s and at the end.
    writer = SummaryWriter(str(run.path), flush_secs=5)
    atexit.register(writer.close)

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, global_step=record["step"])

    return write


def _wandb(run: RunFolder, command: str) -> Sink:
    import wandb

    session = wandb.init(
        project="funcrobust", name=run.path.name, job_type=command, config=run.config,
        dir=str(run.path),
    )  # fmt: skip
    return lambda record: session.log(dict(record), step=record["step"])


_NEEDED = "--log {} needs its library"
_LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_OPENERS: dict[str, Callable[[RunFolder, str], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
