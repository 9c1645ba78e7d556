"""The state of a run, and the pure update that takes one to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchopt
from torch import Tensor
from torch.func import grad

from funcrobust.errors import FuncrobustError
from funcrobust.functional import Buffers, Functional, Params
from funcrobust.schedules import Schedule

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


def initial_state(model: Functional, optim: torchopt.base.GradientTransformation) -> State:
    """Build the state before the first update, from the model's own tensors."""
    step = torch.zeros((), dtype=torch.int64)
    return State(model.params, model.buffers, optim.init(model.params), step)


def make_update(
    objective: TrainingObjective, optim: torchopt.base.GradientTransformation
) -> Update:
    """Build ``(state, *batch) -> (state, metrics)``: gradient, optimizer, new state; all pure.

    The metrics are the objective's, plus the norm of the gradient as ``"gradient_norm"``.
    """

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
        after = State(params, buffers, optimizer_state, state.step + 1)
        return after, {**metrics, "gradient_norm": global_norm(grads)}

    return update


def global_norm(tensors: dict[str, Tensor]) -> Tensor:
    """‖·‖₂ over all tensors together."""
    norm: Tensor = torch.stack([t.norm() for t in tensors.values()]).norm()
    return norm
