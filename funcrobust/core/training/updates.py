"""The state of a run, and the pure update that takes one to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchopt
from torch import Tensor
from torch.func import grad

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Functional, Params
from funcrobust.core.training.schedules import Schedule

Metrics = dict[str, Tensor]
TrainingObjective = Callable[..., tuple[Tensor, tuple[Buffers, Metrics]]]
"""``(params, buffers, *batch) -> (scalar, (buffers after the batch, metrics))``."""


class State(NamedTuple):
    """All that a run is. A pytree of tensors; never mutated."""

    params: Params
    buffers: Buffers
    optimizer_state: Any
    step: Tensor
    """Updates done, 0-dim int64 on the CPU."""
    average: dict[str, Tensor] = {}  # noqa: RUF012 (never mutated, as nothing here is)
    """Running average of parameters and floating-point buffers; empty when none is kept."""


Update = Callable[..., tuple[State, Metrics]]
"""``(state, *batch) -> (state, metrics)``, metrics detached 0-dim tensors."""


def optimizer(
    name: str,
    rate: Schedule | float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    clip_norm: float | None = None,
) -> torchopt.base.GradientTransformation:
    """Build torchopt's functional SGD or Adam, optionally after clipping the gradient's norm.

    ``name`` is "sgd" or "adam" in any case. Weight decay is L2 regularisation, added to the
    gradient, as in ``torch.optim``.
    """
    if name.lower() == "sgd":
        base = torchopt.sgd(
            rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0
        )
    elif name.lower() == "adam":
        base = torchopt.adam(rate, weight_decay=weight_decay)
    else:
        raise FuncrobustError(f"unknown optimizer {name!r}: choose SGD or Adam")
    if clip_norm is not None:
        base = torchopt.combine.chain(torchopt.clip.clip_grad_norm(clip_norm), base)
    _spend_first_call(base)
    return base


def _spend_first_call(optim: torchopt.base.GradientTransformation) -> None:
    """Make the optimizer a function of its state alone.

    torchopt's momentum remembers in a closure whether it was called before, and on the first call
    adds the gradient to the trace without decaying it: right from a fresh state, whose trace is
    zero either way, wrong from a resumed one (torchopt 0.7.3, transform/trace.py).
    """
    nothing = {"": torch.zeros(1)}
    optim.update(nothing, optim.init(nothing), params=nothing, inplace=False)


def initial_state(
    model: Functional, optim: torchopt.base.GradientTransformation, *, averaged: bool = False
) -> State:
    """Build the state before the first update, from the model's own tensors.

    ``averaged`` starts a running average there, which ``make_update(..., decay=...)`` goes on with.
    """
    step = torch.zeros((), dtype=torch.int64)
    average = _averageable(model.params, model.buffers) if averaged else {}
    return State(model.params, model.buffers, optim.init(model.params), step, average)


def ema(average: dict[str, Tensor], new: dict[str, Tensor], decay: Tensor) -> dict[str, Tensor]:
    """Exponential moving average, ā ← d·ā + (1 − d)·a for every tensor of ``average``."""
    return {name: old + (1.0 - decay) * (new[name] - old) for name, old in average.items()}


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
    optim: torchopt.base.GradientTransformation,
    *,
    decay: float | None = None,
) -> Update:
    """Build ``(state, *batch) -> (state, metrics)``: gradient, optimizer, new state; all pure.

    The metrics are the objective's, plus the norm of the gradient as ``"gradient_norm"``. A
    ``decay`` in [0, 1) keeps `ema` of what the update leaves, with `warmed_up` decay, in
    ``State.average``: of the batch-norm statistics too, which belong to their parameters.
    """
    if decay is not None and not 0 <= decay < 1:
        raise FuncrobustError(f"the average's decay must be in [0, 1), got {decay}")

    def update(state: State, *batch: Tensor) -> tuple[State, Metrics]:
        # Buffers and batch are closed over, not passed: grad would wrap them, and a wrapped tensor
        # inside the adjoint's custom Function breaks under an outer vmap or grad.
        def of_params(params: Params) -> tuple[Tensor, tuple[Buffers, Metrics]]:
            return objective(params, state.buffers, *batch)

        grads, (buffers, metrics) = grad(of_params, has_aux=True)(state.params)
        updates, optimizer_state = optim.update(
            grads, state.optimizer_state, params=state.params, inplace=False
        )
        params = torchopt.apply_updates(state.params, updates, inplace=False)
        average = state.average
        if decay is not None:
            if not average:
                raise FuncrobustError("a decay needs initial_state(..., averaged=True)")
            rate = warmed_up(decay, state.step)
            average = ema(average, _averageable(params, buffers), rate)
        after = State(params, buffers, optimizer_state, state.step + 1, average)
        return after, {**metrics, "gradient_norm": global_norm(grads)}

    return update


def global_norm(tensors: dict[str, Tensor]) -> Tensor:
    """‖·‖₂ over all tensors together."""
    norm: Tensor = torch.stack([t.norm() for t in tensors.values()]).norm()
    return norm
