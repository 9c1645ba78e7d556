"""The state of a run, and the pure update that takes one to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torchopt
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_leaves, tree_map

from funcrobust.core.arguments import require_objective
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.network.functional import Buffers, Functional, Params
from funcrobust.core.objectives.lift import Metrics, TrainingObjective
from funcrobust.core.randomness import folded
from funcrobust.core.shards import Shard, is_key, is_rows
from funcrobust.core.training.optimizers import (
    Optimizer,
    global_norm,
    require_functional,
    spend_first_call,
)
from funcrobust.core.training.sharding import are_spread, scattered, whole


class State(NamedTuple):
    """All that a run is. A pytree of tensors; never mutated."""

    params: Params
    buffers: Buffers
    optimizer_state: Any
    step: Tensor
    """Updates done, 0-dim int64 on the CPU."""
    average: dict[str, Tensor] = {}  # noqa: RUF012 (never mutated, as nothing here is)
    """Running average of parameters and floating-point buffers; empty when none is kept."""


def device_of(state: State) -> torch.device:
    """Where the parameters are."""
    return next(iter(state.params.values())).device


Update = Callable[..., tuple[State, Metrics]]
"""``(state, *batch) -> (state, metrics)``, metrics detached 0-dim tensors."""


def initial_state(model: Functional | Params, optim: Optimizer, *, averaged: bool = False) -> State:
    """Build the state before the first update, from the model's own tensors, or from parameters.

    ``averaged`` starts a running average there, which ``make_update(..., decay=...)`` goes on with.
    All parameters are trained, those too that the module had frozen (``requires_grad=False``), with
    a warning: to train a part, give that part, and let the loss merge it into all of them.
    """
    if not isinstance(model, dict) and (frozen := model.frozen()):
        warnings.warn(
            f"{len(frozen)} parameters of this network were frozen ({frozen[0]}, ...), and are "
            "trained all the same: to train the others alone give initial_state their dict, and "
            "merge it in the loss, {**model.params, **params}",
            stacklevel=2,
        )
    params, buffers = (model, {}) if isinstance(model, dict) else (model.params, model.buffers)
    require_functional(optim)
    if nested := [name for name, p in params.items() if not isinstance(p, Tensor)]:
        raise FuncrobustError(
            f"an update's parameters are one flat dict of tensors, and {nested[0]!r} is none: of "
            "two networks train {'a/' + name: p, ...}, and let the loss give each its own back"
        )
    spend_first_call(optim, params)
    step = torch.zeros((), dtype=torch.int64)
    # Copies: what a compiler makes for two names of one tensor, it makes again for two tensors.
    average = {n: t.clone() for n, t in _averageable(params, buffers).items()} if averaged else {}
    return State(params, buffers, optim.init(params), step, average)


def ema(average: dict[str, Tensor], new: dict[str, Tensor], decay: Tensor) -> dict[str, Tensor]:
    """Exponential moving average, ā ← d·ā + (1 − d)·a for every tensor of ``average``."""
    return {
        name: old + (1.0 - decay).to(old.dtype) * (new[name] - old) for name, old in average.items()
    }


def warmed_up(decay: float, step: Tensor) -> Tensor:
    """min(d, (1 + t)/(10 + t)) after t updates: a young average forgets its start sooner.

    The form of TensorFlow's ExponentialMovingAverage(num_updates=t).
    """
    t = step.double()
    return ((1 + t) / (10 + t)).clamp_max(decay)


def averaged(state: State) -> tuple[Params, Buffers]:
    """Return the parameters and buffers to evaluate: the average if one is kept, else the last."""
    return (
        {name: state.average.get(name, p) for name, p in state.params.items()},
        {name: state.average.get(name, b) for name, b in state.buffers.items()},
    )


def _averageable(params: Params, buffers: Buffers) -> dict[str, Tensor]:
    return params | {name: b for name, b in buffers.items() if b.is_floating_point()}


def make_update(
    objective: TrainingObjective,
    optim: Optimizer,
    *,
    decay: float | None = None,
    accumulate: int = 1,
    across: Shard = Shard(),
) -> Update:
    """Build ``(state, *batch) -> (state, metrics)``: gradient, optimizer, new state; all pure.

    >>> model = fr.functionalize(nn.Linear(4, 3))
    >>> optim = fr.optimizer("adamw", fr.schedule("cosine", lr_max=1e-3, total_steps=1000))
    >>> loss = fr.objective(fr.cross_entropy(model.predict))
    >>> update = fr.make_update(loss, optim, decay=0.999)
    >>> state = fr.initial_state(model, optim, averaged=True)
    >>> state, metrics = update(state, torch.zeros(2, 4), torch.tensor([0, 2]))
    >>> int(state.step), sorted(metrics)
    (1, ['gradient_norm', 'loss'])

    The metrics are the objective's, plus the norm of the gradient as ``"gradient_norm"``. A
    ``decay`` in [0, 1) keeps `ema` of what the update leaves, with a decay that is warmed up, in
    ``State.average``: of the batch-norm statistics too, which belong to their parameters.
    ``accumulate`` k cuts the batch into k parts of equal size, one after the other: the gradient
    and the metrics are their means, at a k-th of the memory (batch norm sees a part at a time).
    Where some of a batch's tensors have fewer rows, which go with its first examples
    (`Batch.restored`), each part has a k-th of those examples too, and has them first. Every tensor
    of a batch that has dimensions counts as rows: weights of classes belong in the objective.
    ``across`` several processes, each with its rows of a batch, gradient and metrics are the means
    over them: see `Shard`. Of parameters that are spread over them each keeps its part: see
    `sharded`.

    Raises `FuncrobustError` for a decay outside [0, 1), or a number of rows that k does not divide.
    """
    if decay is not None and not 0 <= decay < 1:
        raise FuncrobustError(f"the average's decay must be in [0, 1), got {decay}")
    require_count("accumulate", accumulate, minimum=1)
    require_objective(objective)
    require_functional(optim)
    with suppress(KeyError, ValueError):  # a mask by names wants these: `initial_state` has them
        spend_first_call(optim, {"": torch.zeros(1)})

    def update(state: State, *batch: Any) -> tuple[State, Metrics]:
        if (decay is not None) != (len(state.average) > 0):
            raise FuncrobustError(
                "a weight average takes both: make_update(..., decay=) and "
                "initial_state(..., averaged=True)"
            )
        gathered = state._replace(params=whole(state.params))
        grads, buffers, metrics = _gradient(objective, gathered, batch, accumulate)
        if are_spread(state.params):
            grads, metrics = scattered(grads, state.params), across.mean_of_all(metrics)
        else:
            grads, metrics = across.mean_of_all((grads, metrics))
        updates, optimizer_state = optim.update(
            grads, state.optimizer_state, params=state.params, inplace=False
        )
        # In the parameters' own precision: a schedule's rate, a number in float64, would promote
        # those without dimensions (a temperature that is learnt).
        updates = {name: u.to(state.params[name].dtype) for name, u in updates.items()}
        params = torchopt.apply_updates(state.params, updates, inplace=False)
        average = state.average
        if decay is not None:
            rate = warmed_up(decay, state.step)
            average = ema(average, _averageable(params, buffers), rate)
        after = State(params, buffers, optimizer_state, state.step + 1, average)
        return after, {**metrics, "gradient_norm": whole(global_norm(grads))}

    return update


def _gradient(
    objective: TrainingObjective, state: State, batch: Any, parts: int
) -> tuple[Params, Buffers, Metrics]:
    """Differentiate over ``parts`` parts of the batch in turn; means of gradient and metrics."""
    buffers, sums = state.buffers, None
    for part in _parts(batch, parts):
        # Buffers and batch are closed over, not passed: grad would wrap them, and a wrapped tensor
        # inside the adjoint's custom Function breaks under an outer vmap or grad.
        def of_params(
            params: Params, buffers: Buffers = buffers, part: Any = part
        ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
            return objective(params, buffers, *part)

        grads, (buffers, metrics) = grad(of_params, has_aux=True)(state.params)
        found = (grads, metrics)
        sums = found if sums is None else tree_map(torch.add, sums, found)
    assert sums is not None
    grads, metrics = sums if parts == 1 else tree_map(lambda t: t / parts, sums)
    return grads, buffers, metrics


def _parts(batch: Any, parts: int) -> list[Any]:
    if parts == 1:
        return [batch]
    sizes = sorted({len(t) for t in tree_leaves(batch) if is_rows(t)})
    if not sizes or any(size % parts for size in sizes):
        said = " and ".join(map(str, sizes)) or "no"
        raise FuncrobustError(f"no {parts} equal parts can be made of a batch of {said} examples")
    return [_keyed(_part(batch, sizes, i, parts), i) for i in range(parts)]


def _part(batch: Any, sizes: list[int], number: int, parts: int) -> Any:
    """Take a block of the rows up to the first size, one of those up to the next, and so on.

    So what there is of the first examples alone stays beside them, and what each of several
    processes takes of its own rows makes up the part that one would take of all (`Shard`).
    """
    blocks = []
    for low, high in pairwise([0, *sizes]):
        each = (high - low) // parts
        blocks.append(slice(low + number * each, low + (number + 1) * each))

    def rows(t: Any) -> Any:
        if not is_rows(t):
            return t
        own = [t[block] for block, size in zip(blocks, sizes, strict=True) if size <= len(t)]
        return own[0] if len(own) == 1 else torch.cat(own)

    return tree_map(rows, batch)


def _keyed(part: Any, number: int) -> Any:
    """Give each part of a batch keys of its own, or all would draw the same masks."""
    return tree_map(lambda t: folded(t, number) if is_key(t) else t, part)
