"""The machine a command runs on: its device, its precision, how its updates are launched."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, TypeVar

import torch

from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.core.network.functional import Functional
from funcrobust.core.training.capturing import capture_checked
from funcrobust.core.training.compiling import compile_checked
from funcrobust.core.training.updates import State, Update, device_of
from funcrobust.report.console import Reporter
from funcrobust.running.groups import Precision, Run
from funcrobust.running.processes import processes

Training = TypeVar("Training", bound=Run)
"""A training's options."""


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" (`groups.Machine`) into a device that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FuncrobustError("CUDA was asked for, but no CUDA device is here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FuncrobustError(f"{name} is not here: there are {torch.cuda.device_count()} devices")
    if device.type == "cuda":
        _promised()
    return device


def _promised() -> None:
    """Have cuDNN do what is said of a run: float32 is float32, and the same bits come again."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def pick_precision(precision: Precision, device: torch.device) -> Precision:
    """Turn "auto" into bf16 where the hardware multiplies it, else fp32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16, which is slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def warn_if_emulated(precision: Precision, device: torch.device, reporter: Reporter) -> None:
    """Say so where a bf16 that was asked for is one that the device can only emulate."""
    if precision == "bf16" and pick_precision("auto", device) == "fp32":
        reporter.warn(
            "this machine emulates bfloat16, and may take ten times as long as in float32 or more: "
            "fp32 is faster here, and auto takes the faster one"
        )


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Turn "fp32", "bf16" or "auto" into autocast's dtype."""
    return torch.bfloat16 if pick_precision(precision, device) == "bf16" else None


def to_device(model: Functional, device: torch.device) -> Functional:
    """Move, in the memory layout that convolutions are fastest in."""
    return model.to(device, torch.channels_last)


def launched(
    update: Update, *, state: State, batch: Any, options: Run, compiles: bool,
    reporter: Reporter,
) -> Update:  # fmt: skip
    """Compile the update, or record it, or leave it as it is: as asked, or as the machine likes.

    On a GPU, where nothing is asked, it is recorded; or, of a training that ``compiles``, compiled.
    """
    on_gpu = device_of(state).type == "cuda"
    compiled = maybe_compile(
        update, state=state, batch=batch, reporter=reporter, asked=options.compile,
        default=compiles and on_gpu and not options.capture,
    )  # fmt: skip
    if compiled is not update:
        return compiled
    return maybe_capture(
        update, state=state, batch=batch, reporter=reporter, asked=options.capture, default=on_gpu
    )


def rehearsed(options: Training) -> Training:
    """Return the options that a training of so many minutes is timed with: nothing is compiled.

    A compiler's minutes are not the budget's, and what it will make is timed as the eager update.
    """
    return replace(options, compile=False, capture=False if options.compile else options.capture)


def maybe_compile(
    update: Update, *, state: State, batch: Any, asked: bool | None, default: bool,
    reporter: Reporter,
) -> Update:  # fmt: skip
    """Compile the update, checked against the eager one, if it is ``asked`` for.

    Where nothing is asked the machine's ``default`` is taken, and what does not compile, or
    compiles to something else, is trained eagerly, with a warning. Raises `FuncrobustError` where
    compiling was asked for.
    """
    if not (default if asked is None else asked):
        return update
    reporter.say("compiling the update, and checking it against the eager one ...")
    began = time.perf_counter()
    try:
        compiled = compile_checked(update, state, batch)
    except Exception as error:  # a compiler's own: no C++ compiler here, no memory, a bug
        if not asked:
            reporter.warn(f"trained without torch.compile, slower: {one_line(error)}")
            return update
        if isinstance(error, FuncrobustError):  # a wrong compilation, which says what to do
            raise
        said = f"the update does not compile: {one_line(error)}; --no-compile"
        raise FuncrobustError(said) from error
    reporter.say(f"compiled equals eager ({time.perf_counter() - began:.0f} s)")
    return compiled


def require_capture(asked: bool | None, device: torch.device) -> None:
    """Raise where a CUDA graph is ``asked`` for and there can be none."""
    if asked and device.type != "cuda":
        raise FuncrobustError(
            f"--capture is of updates on CUDA, and this training is on {device}: --no-capture"
        )
    if asked and processes().size > 1:
        raise FuncrobustError(
            f"--capture is for one process, and these are {processes().size}: --no-capture"
        )


def maybe_capture(
    update: Update, *, state: State, batch: Any, asked: bool | None, default: bool,
    reporter: Reporter,
) -> Update:  # fmt: skip
    """Record the update as a CUDA graph, checked against the eager one, if it is ``asked`` for.

    As in `maybe_compile`: unasked, what cannot be recorded is trained eagerly, with a warning. So
    is a training of several processes, which wait for each other.
    """
    if not (default and processes().size == 1 if asked is None else asked):
        return update
    began = time.perf_counter()
    try:
        captured = capture_checked(update, state, batch)
    except Exception as error:  # no memory, a wait for the GPU in somebody's own loss
        if not asked:
            reporter.warn(f"trained without a CUDA graph, slower: {one_line(error)}")
            return update
        said = f"the update cannot be replayed: {one_line(error)}; --no-capture"
        raise FuncrobustError(said) from error
    reporter.say(f"recorded as a CUDA graph ({time.perf_counter() - began:.0f} s)")
    return captured
