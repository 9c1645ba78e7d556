"""Where a run is: as tensors and JSON, written beside the training, found again."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torchopt import pytree

from funcrobust import checkpoints
from funcrobust.checkpoints import Card
from funcrobust.checkpoints.format import copies
from funcrobust.checkpoints.locate import STATE, STATE_BEFORE, STATE_RECORDED
from funcrobust.checkpoints.state import with_card, write_state
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.training.updates import State
from funcrobust.files import also_named
from funcrobust.reading import structured
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder

LONGEST = 1e10
"""Seconds of training that a state is believed to have behind it: three centuries."""


@dataclass(frozen=True)
class Position:
    """Where a run is: its state, and what the record of the epoch under way has so far."""

    state: State
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Of each metric over the epoch's updates, in the order in which they were added."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Updates behind each sum."""
    seconds: float = 0.0
    """Of training in all, over all sessions."""

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state.step)


@dataclass(frozen=True)
class Kept:
    """What makes a checkpoint of a state: a card, and the names that are not the network's."""

    card: Card
    left_out: tuple[str, ...] = ()


class Writer:
    """Writes a run's positions in a thread of its own, one after the other.

    The tensors are copied in the thread of the caller. A write that failed raises its `WriteError`
    at the next call. Leaving the context waits for the last write.
    """

    def __init__(self, run: RunFolder, every: float = math.inf, kept: Kept | None = None) -> None:
        """``every`` is in seconds."""
        self._run, self._every, self._kept = run, every, kept
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        self._newest: Callable[[], Position | None] = lambda: None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def due(self) -> bool:
        """Whether the last save is ``every`` seconds ago, and written."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is None and time.monotonic() - self._last >= self._every

    def save(self, position: Position) -> None:
        """Begin to write a position, unless it is the one written last."""
        if position is self._newest():
            return
        self.wait()
        tensors, meta = pack(position, self._kept)
        copied = copies(tensors, self._run.file(STATE))
        # Not the position itself, which would keep a state of the past in a GPU's memory.
        self._newest, self._last = weakref.ref(position), time.monotonic()
        self._writing = self._pool.submit(_write, self._run, copied, meta)

    def wait(self) -> None:
        """Wait until what was saved is on disk."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except BaseException:
                self._newest = lambda: None
                raise


def _write(run: RunFolder, copied: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
    run.require_there()
    path = run.file(STATE)
    if path.exists():
        also_named(path, run.file(STATE_BEFORE))
    write_state(path, copied, meta)


def pack(position: Position, kept: Kept | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a position as tensors, and what JSON can hold."""
    state = position.state
    tensors = {f"params/{name}": p for name, p in state.params.items()}
    tensors |= {f"buffers/{name}": b for name, b in state.buffers.items()}
    tensors |= {f"average/{name}": a for name, a in state.average.items()}
    leaves: list[Any] = pytree.tree_leaves(state.optimizer_state)
    tensors |= {f"optimizer/{i:04d}": leaf for i, leaf in enumerate(leaves)}
    tensors["step"] = state.step
    # The file holds values alone; kernels are chosen by layout too, so a resumed run needs both
    # to go on to the same bits.
    strides = {name: tensor.stride() for name, tensor in tensors.items()}
    tensors |= {f"sums/{name}": total for name, total in position.sums.items()}
    meta: dict[str, Any] = {
        "step": position.step, "strides": strides, "counts": dict(position.counts),
        "seconds": position.seconds,
    }  # fmt: skip
    if kept is not None:
        meta = with_card(meta, asdict(kept.card), list(kept.left_out))
    return tensors, meta


def load_position(
    run: RunFolder, template: State, reporter: Reporter, steps: int | None = None
) -> Position | None:
    """Read the newest whole state of a run that this process holds; None if it has saved none.

    ``template`` (a fresh initial state) gives its structure and device, ``steps`` are the updates
    that the run has in all, where they are known. Where the newest is damaged the one before takes
    its place, which a line says.

    Raises `FuncrobustError` where both are damaged.
    """
    newest, before = run.file(STATE), run.file(STATE_BEFORE)
    if not newest.exists():
        if not before.exists():
            return None
        also_named(before, newest)
    try:
        return unpack(run, STATE, template, steps)
    except FuncrobustError as error:
        try:
            found = unpack(run, STATE_BEFORE, template, steps)
        except FuncrobustError:
            raise FuncrobustError(
                f"{error}; and no whole {STATE_BEFORE} is there: delete both to begin again at "
                "step 0"
            ) from None
        reporter.warn(f"{error}; going on from the state before, at step {found.step}")
        also_named(before, newest)  # or the next save would put the damaged one in its place
        return found


def load_recorded(run: RunFolder, template: State, step: int) -> State | None:
    """Return the state of the record that was made at ``step``, if it is there and whole."""
    try:
        state = unpack(run, STATE_RECORDED, template).state
    except FuncrobustError:
        return None
    return state if int(state.step) == step else None


def unpack(run: RunFolder, name: str, template: State, steps: int | None = None) -> Position:
    """Read one of a run's state files; see `load_position`."""
    path = run.file(name)
    tensors, held = checkpoints.load_state(path)
    meta = _believed(held, tensors, path, steps)

    def saved(key: str, like: Tensor) -> Tensor:
        if key not in tensors or tensors[key].shape != like.shape:
            raise FuncrobustError(f"{path} does not fit this run's network or optimizer: {key}")
        layout = torch.empty_strided(
            like.shape, meta.strides[key], dtype=like.dtype, device=like.device
        )
        return layout.copy_(tensors[key])

    def group(prefix: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: saved(f"{prefix}/{name}", old) for name, old in like.items()}

    old_leaves, spec = pytree.tree_flatten(template.optimizer_state)
    leaves = [saved(f"optimizer/{i:04d}", old) for i, old in enumerate(old_leaves)]
    state = State(
        group("params", template.params),
        group("buffers", template.buffers),
        pytree.tree_unflatten(spec, leaves),
        tensors["step"].cpu(),
        group("average", template.average),
    )
    device = next(iter(template.params.values())).device
    sums = {name: tensors[f"sums/{name}"].to(device) for name in meta.counts}
    return Position(state, sums, meta.counts, meta.seconds)


@dataclass(frozen=True)
class _Meta:
    """What `pack` says beside the tensors."""

    step: int
    strides: dict[str, tuple[int, ...]]
    counts: dict[str, int]
    seconds: float


def _believed(
    held: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, steps: int | None
) -> _Meta:
    """Return what a state says beside its tensors; raise unless it agrees with them and the run."""
    meta = structured(_Meta, held, f"{path} is damaged")
    if "step" not in tensors or int(tensors["step"]) != meta.step:
        why = f"its tensors are not those of step {meta.step}"
    elif steps is not None and meta.step > steps:
        why = f"it is at step {meta.step} of a run of {steps} updates"
    elif not 0 <= meta.seconds <= LONGEST:
        why = f"no training takes {meta.seconds:g} seconds"
    elif alone := [name for name in meta.counts if not _is_summed(name, meta, tensors)]:
        why = f"it has no sum of {alone[0][:80]!r} over one update or more"
    else:
        return meta
    raise FuncrobustError(f"{path} is damaged: {why}")


def _is_summed(name: str, meta: _Meta, tensors: Mapping[str, Tensor]) -> bool:
    total = tensors.get(f"sums/{name}")
    number = total is not None and total.ndim == 0 and total.is_floating_point()
    return number and meta.counts[name] >= 1
