"""What turns a gradient into a step: torchopt's SGD, Adam and AdamW, and Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchopt
from torch import Tensor

from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.network.functional import Params
from funcrobust.core.training.muon import scale_by_muon
from funcrobust.core.training.schedules import Schedule
from funcrobust.core.training.sharding import whole

Optimizer = torchopt.base.GradientTransformation
"""torchopt's pair ``init(params) -> state``, ``update(grads, state, params=) -> (updates, state)``.

Any of torchopt's will do, chains included.
"""

Mask = Callable[[Params], dict[str, bool]]


def matrices(params: Params) -> dict[str, bool]:
    """Tell which parameters have two dimensions or more: weights, not biases and not norms'."""
    return {name: p.ndim >= 2 for name, p in params.items()}


def optimizer(
    name: str,
    rate: Schedule | float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    clip_norm: float | None = None,
    decayed: Mask | None = None,
) -> Optimizer:
    """Build torchopt's functional SGD, Adam or AdamW, or Muon, if asked to after clipping.

    ``name`` is "sgd", "adam", "adamw" or "muon" in any case. ``momentum``, 0.9 unless given, is
    SGD's and Muon's, and Nesterov's in Muon; in SGD if ``nesterov`` says so. Muon is for the
    parameters of two dimensions or more; the others are AdamW's, at the same rate.

    Weight decay is L2 regularisation, added to the gradient, as in ``torch.optim``; that of adamw
    and muon is decoupled. ``decayed`` tells which parameters it is for: ``fr.matrices``, muon's
    own, leaves out biases and the scales of norms; the others decay all.

    Raises `FuncrobustError` for another name, or numbers negative or not finite.
    """
    if not callable(rate):
        require_finite("rate", rate)
    require_finite("momentum", momentum)
    require_finite("weight_decay", weight_decay)
    rest = 0.0 if decayed else weight_decay  # with a mask it is a step of its own
    decayed = matrices if decayed is None and name.lower() == "muon" else decayed
    decay = torchopt.transform.add_decayed_weights(weight_decay, mask=decayed)
    if name.lower() == "sgd":
        base = torchopt.sgd(
            rate, momentum=momentum, weight_decay=rest, nesterov=nesterov and momentum > 0
        )
    elif name.lower() == "adam":
        base = torchopt.adam(rate, weight_decay=rest)
    elif name.lower() == "adamw":  # torchopt's own hands a mask a list, without the names
        scaled = torchopt.transform.scale_by_adam()
        return _clipped(torchopt.combine.chain(scaled, decay, torchopt.sgd(rate)), clip_norm)
    elif name.lower() == "muon":
        scaled = _apart(matrices, scale_by_muon(momentum), torchopt.transform.scale_by_adam())
        return _clipped(torchopt.combine.chain(scaled, decay, torchopt.sgd(rate)), clip_norm)
    else:
        raise FuncrobustError(f"unknown optimizer {name!r}: choose SGD, Adam, AdamW or Muon")
    if decayed and weight_decay:
        base = torchopt.combine.chain(decay, base)
    return _clipped(base, clip_norm)


def _apart(mask: Mask, chosen: Optimizer, others: Optimizer) -> Optimizer:
    """Let one transformation have the parameters that the mask chooses, and one the others."""

    def parts(tensors: Params) -> tuple[Params, Params]:
        own = mask(tensors)
        return (
            {name: t for name, t in tensors.items() if own[name]},
            {name: t for name, t in tensors.items() if not own[name]},
        )

    def init(params: Params) -> tuple[Any, Any]:
        its, rest = parts(params)
        return chosen.init(its), others.init(rest)

    def update(
        updates: Params, state: tuple[Any, Any], *, params: Any = None, inplace: bool = True
    ) -> tuple[Params, tuple[Any, Any]]:
        del params  # neither looks at them
        its, rest = parts(updates)
        its, first = chosen.update(its, state[0], inplace=inplace)
        rest, second = others.update(rest, state[1], inplace=inplace)
        found = its | rest
        return {name: found[name] for name in updates}, (first, second)

    return torchopt.base.GradientTransformation(init, update)


def _clipped(optim: Optimizer, clip_norm: float | None) -> Optimizer:
    if clip_norm is None:
        return optim
    limit = require_finite("clip_norm", clip_norm)

    # torchopt's own reads the norm as a number: no vmap, no one graph, and a wait for the GPU.
    def clip(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = True
    ) -> tuple[Any, Any]:
        del params, inplace
        share = (limit / (whole(global_norm(updates)) + 1e-6)).clamp_max(1.0)
        return {name: g * share for name, g in updates.items()}, state

    nothing = torchopt.base.EmptyState()
    clipping = torchopt.base.GradientTransformation(lambda _: nothing, clip)
    return torchopt.combine.chain(clipping, optim)


def require_functional(optim: Optimizer) -> None:
    if not (callable(getattr(optim, "init", None)) and callable(getattr(optim, "update", None))):
        raise FuncrobustError(
            f"an optimizer is fr.optimizer(...) or a functional one of torchopt's (torchopt.adam), "
            f"not a {type(optim).__module__}.{type(optim).__name__}"
        )


def spend_first_call(optim: Optimizer, params: Params) -> None:
    """Make the optimizer a function of its state alone.

    torchopt's momentum remembers in a closure whether it was called before, and on the first call
    adds the gradient to the trace without decaying it: right from a fresh state, whose trace is
    zero either way, wrong from a resumed one (torchopt 0.7.3, transform/trace.py).
    """
    nothing = {name: torch.zeros_like(p) for name, p in params.items()}
    optim.update(nothing, optim.init(nothing), params=nothing, inplace=False)


def global_norm(tensors: dict[str, Tensor]) -> Tensor:
    """‖·‖₂ over all tensors together."""
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.stack([t.norm() for t in tensors.values()]).norm()
    return norm
