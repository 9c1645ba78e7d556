"""A run's folder and the state in it: made, saved, found again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchopt import pytree

from funcrobust import checkpoints
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.training.updates import State
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.classifier import CHECKPOINT_FILE
from funcrobust.running.config import resume_command, to_config
from funcrobust.running.groups import Run
from funcrobust.running.options import command_name

STATE_FILE = "state.safetensors"


def open_run(options: Run, state: State, steps: int) -> tuple[RunFolder, State]:
    """Make a run's folder; or open the one to resume, and its state in place of ``state``."""
    if options.resume is None:
        command = command_name(type(options))
        return RunFolder.create(options.out, command, to_config(options), options.name), state
    run = RunFolder.open(options.resume)
    state = load_state(run, state)
    if int(state.step) >= steps:
        raise FuncrobustError(f"{options.resume} is complete: there is nothing left to resume")
    run.truncate_metrics(lambda record: record["step"] <= int(state.step))
    return run, state


def say_how_to_resume(run: RunFolder, command: str, reporter: Reporter) -> None:
    """Say what an interrupted run left, and the command that goes on with it."""
    reporter.warn(
        f"interrupted: {run.file(CHECKPOINT_FILE)} holds the parameters as they are. Continue with"
    )
    reporter.say(resume_command(run, command))


def save_state(run: RunFolder, state: State) -> None:
    """Write the full state, atomically, into the run folder."""
    tensors = {f"params/{name}": p for name, p in state.params.items()}
    tensors |= {f"buffers/{name}": b for name, b in state.buffers.items()}
    tensors |= {f"average/{name}": a for name, a in state.average.items()}
    leaves: list[Any] = pytree.tree_leaves(state.optimizer_state)
    tensors |= {f"optimizer/{i:04d}": leaf for i, leaf in enumerate(leaves)}
    tensors["step"] = state.step
    # The file holds values alone; kernels are chosen by layout too, so a resumed run needs both
    # to go on to the same bits.
    strides = {name: tensor.stride() for name, tensor in tensors.items()}
    checkpoints.save_state(
        run.file(STATE_FILE), tensors, {"step": int(state.step), "strides": strides}
    )


def load_state(run: RunFolder, template: State) -> State:
    """Read the state back; ``template`` (a fresh initial state) gives its structure and device."""
    path = run.file(STATE_FILE)
    if not path.exists():
        raise FuncrobustError(f"{path} is missing: this run has not saved a state to resume from")
    tensors, meta = checkpoints.load_state(path)

    def saved(key: str, like: Tensor) -> Tensor:
        if key not in tensors or tensors[key].shape != like.shape:
            raise FuncrobustError(f"{path} does not fit this run's network or optimizer: {key}")
        layout = torch.empty_strided(
            like.shape, meta["strides"][key], dtype=like.dtype, device=like.device
        )
        return layout.copy_(tensors[key])

    def group(prefix: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: saved(f"{prefix}/{name}", old) for name, old in like.items()}

    old_leaves, spec = pytree.tree_flatten(template.optimizer_state)
    leaves = [saved(f"optimizer/{i:04d}", old) for i, old in enumerate(old_leaves)]
    return State(
        group("params", template.params),
        group("buffers", template.buffers),
        pytree.tree_unflatten(spec, leaves),
        tensors["step"].cpu(),
        group("average", template.average),
    )
