"""An update as a CUDA graph: its kernels launched as one, checked against the eager update.

A second derivative through attacks and regularisers is thousands of small kernels, and Python takes
longer to launch them than a GPU to run them. A graph (`torch.cuda.CUDAGraph`) keeps the launches of
one update, and replays them. Nothing is compiled: they are the eager update's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from funcrobust.core.balls.ball import known_inside
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.objectives.lift import Metrics
from funcrobust.core.shards import is_rows
from funcrobust.core.training.compiling import wrong
from funcrobust.core.training.updates import State, Update, device_of

WARM_UP = 3
"""Eager updates before the recorded one: what is allocated and chosen once is not to be in it."""


class Recorder(Protocol):
    """``record(call) -> (outputs, replay)``: replaying writes the outputs' memory anew."""

    def __call__(self, call: Callable[[], Any], /) -> tuple[Any, Callable[[], None]]: ...


def cuda_graph(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record a CUDA graph of ``call``."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # On a stream of this GPU: torch's own is of the GPU that a graph was first recorded on. And
    # back to the one before: where recording fails, torch 2.11 stays on the graph's.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=aside):
        outputs = call()
    return outputs, graph.replay


def capture_checked(
    update: Update, state: State, *batch: Any, recorder: Recorder = cuda_graph
) -> Update:
    """Record ``update`` as a CUDA graph, and return its replay if that is as right as the update.

    The replay is a function like the update, ``(state, *batch) -> (state, metrics)``: tensors given
    are copied into the graph's memory, tensors returned are copies out of it. It is for states and
    batches of the shapes of those given, on their device; what in them is no tensor (a flag of
    `Batch`) must be equal. It has no derivative and nests under no transform.

    A graph repeats what it saw: a number that the update reads off the CPU would stay what it was.
    So two updates on, with the batch in reverse order, its replay is held against the eager update:
    equal to the bit, or as near to the update in float64, as in `compile_checked`, with no metric
    that stays. Or `FuncrobustError` names the worst. What changes later, outside state and batch,
    no check sees. Costs some seven updates, and for as long as it lives the memory of one
    more state, batch and update. No state is changed. CUDA alone.
    """
    if recorder is cuda_graph and not device_of(state).type == "cuda":
        raise FuncrobustError(
            f"a CUDA graph is of an update on CUDA, and this state is on {device_of(state)}"
        )
    first, _ = update(state, *batch)  # the one whose images a ball may look at
    replay = _Replay(update, state, batch, recorder)
    with known_inside():
        later, _ = update(first, *batch)
        turned = tree_map(lambda t: t.flip(0) if is_rows(t) else t, batch)
        _, recorded = replay(state, *batch)
        _require_right(update, replay, later, turned, recorded)
    return replay


class _Replay:
    """The graph's own memory, and what copies into and out of it."""

    def __init__(
        self, update: Update, state: State, batch: tuple[Any, ...], record: Recorder
    ) -> None:
        self._device = device_of(state)
        leaves, self._form = tree_flatten((state, batch))
        self._own = [_own(leaf, self._device) for leaf in leaves]
        own = tree_unflatten(self._own, self._form)

        def call() -> Any:
            with known_inside():
                return update(own[0], *own[1])

        self._update = update  # holds what the graph reads besides: a data set's labels, weights
        with _current(self._device):
            outputs, self._replay = record(call)
        self._outputs, self._returned = tree_flatten(outputs)
        _require_written(self._outputs, self._device)

    @torch.no_grad()
    def __call__(self, state: State, *batch: Any) -> tuple[State, Metrics]:
        leaves, form = tree_flatten((state, batch))
        _require_alike(leaves, form, self._own, self._form)
        with _current(self._device):
            self._copy_in(leaves)
            self._replay()
            copies = _copies(self._outputs)
        found: tuple[State, Metrics] = tree_unflatten(copies, self._returned)
        after, metrics = found
        return after._replace(step=state.step + 1), metrics

    def _copy_in(self, leaves: list[Any]) -> None:
        into, given = [], []
        for own, leaf in zip(self._own, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.device != own.device:  # the count of updates: to copy it would wait for the GPU
                own.fill_(leaf.item()) if leaf.ndim == 0 else own.copy_(leaf)
            else:
                into.append(own)
                given.append(leaf)
        torch._foreach_copy_(into, given)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one, whose stream a graph is recorded and replayed on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _own(leaf: Any, device: torch.device) -> Any:
    """Memory of a graph's own for a tensor of the state or batch, with its strides."""
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_like(leaf, device=device).copy_(leaf.detach())


def _copies(leaves: list[Any]) -> list[Any]:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    fresh = [torch.empty_like(t) for t in tensors]
    torch._foreach_copy_(fresh, tensors)
    kept = iter(fresh)
    return [next(kept) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _require_alike(leaves: list[Any], form: TreeSpec, own: list[Any], owned: TreeSpec) -> None:
    """Refuse what the graph was not recorded of."""
    if form != owned:
        raise FuncrobustError("a replayed update takes a state and batch of the parts recorded")
    for leaf, recorded in zip(leaves, own, strict=True):
        if isinstance(leaf, Tensor) and isinstance(recorded, Tensor):
            if is_functorch_wrapped_tensor(leaf):  # to copy it would be a silent zero slope
                raise FuncrobustError(
                    "a replayed update nests under no transform: transform the update, and record "
                    "that"
                )
            if (leaf.shape, leaf.dtype) != (recorded.shape, recorded.dtype):
                raise FuncrobustError(
                    f"a replayed update takes the shapes it was recorded with: "
                    f"{tuple(recorded.shape)} {recorded.dtype}, got {tuple(leaf.shape)} "
                    f"{leaf.dtype}"
                )
        elif isinstance(leaf, Tensor) or isinstance(recorded, Tensor) or leaf != recorded:
            raise FuncrobustError(
                f"a replayed update was recorded with {_said(recorded)}, got {_said(leaf)}"
            )


def _require_written(outputs: list[Any], device: torch.device) -> None:
    """Refuse what no replay would write: it would be returned as it was recorded, every time."""
    for leaf in outputs:
        if isinstance(leaf, Tensor) and leaf.device.type != device.type:
            raise FuncrobustError(
                f"a CUDA graph writes on the GPU alone, and this update returns a tensor on "
                f"{leaf.device}"
            )


def _said(leaf: Any) -> str:
    return "a tensor" if isinstance(leaf, Tensor) else repr(leaf)


def _require_right(
    update: Update, replay: Update, state: State, batch: Any, recorded: Metrics
) -> None:
    """Raise unless the replay does what the update does, on a state and batch of others.

    Of metrics, some of which are counts of few examples, it is asked whether they still are what
    was ``recorded`` where the update's are not.
    """
    (eager, told), (found, replayed) = update(state, *batch), replay(state, *batch)
    if _alike((eager, told), (found, replayed)):
        return
    off = wrong(update, state, batch, eager, found)
    for name, m in replayed.items():
        if torch.equal(m, recorded[name]) and not torch.equal(m, told[name]):
            off = off or f"off in the metric {name}, which is still {float(m):.6g}"
    if off:
        raise FuncrobustError(
            f"a replay of the update is {off}: it reads numbers that a CUDA graph does not see "
            "change"
        )


def _alike(eager: Any, found: Any) -> bool:
    pairs = zip(tree_leaves(eager), tree_leaves(found), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
