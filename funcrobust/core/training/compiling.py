"""Compiled equals eager, checked: a compiled update must first be as right as the eager one.

Miscompilations are real: torch 2.13's CPU compiler was silently wrong on SGD's weight decay.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.training.updates import State, Update

TOLERANCE = 5e-3
"""What a compiled update may be off by even where the eager one is exact, as a share of the change
it makes: sums in another order, a rounding more or less. A wrong term is off by far more."""
SLACK = 3.0
"""How many times the eager update's own error a compiled one may have. Attacks and CURE take signs
of gradients, and where a gradient is near 0 a rounding turns its sign: measured on preact-tiny at
its start, compiled and eager differ by up to 0.54 of a tensor's change in bfloat16, both being
right. So each is held against the same update in float64, and not one against the other."""
SMALLEST = 1e-3
"""A tensor's change counts as at least this share of its group's (all parameters, all momenta): the
gradient of a bias before batch norm is 0, and all that is seen of it is rounding."""


def compile_checked(
    update: Update,
    state: State,
    *batch: Any,
    tolerance: float = TOLERANCE,
    backend: str | Callable[..., Any] = "inductor",
) -> Update:
    """Compile ``update`` into one graph, and return it if it is as right as the eager one.

    The truth is the same update run eagerly in float64, which autocast leaves alone. Everything an
    update changes is compared, the optimizer's momentum included (it holds the gradient even while
    a warm-up's learning rate is 0). With e = ‖after − truth‖/‖truth − before‖ for each tensor,

        e(compiled) ≤ 3 · e(eager) + tolerance

    or `FuncrobustError` names the worst tensor. This is how torch judges its own compiler. Costs
    the compilation and three updates; no state is changed.
    """
    compiled: Update = torch.compile(update, fullgraph=True, backend=backend)
    (found, _), (eager, _) = compiled(state, *batch), update(state, *batch)
    if off := wrong(update, state, batch, eager, found, tolerance):
        raise FuncrobustError(
            f"the compiled update is {off}: torch {torch.__version__} miscompiles it; train with "
            "--no-compile"
        )
    return compiled


def wrong(
    update: Update, state: State, batch: Any, eager: State, found: State,
    tolerance: float = TOLERANCE,
) -> str:  # fmt: skip
    """Say which tensor of ``found`` is less right than the ``eager`` update's; "" if none is.

    Whole numbers, the count of updates and an optimizer's own, are equal.
    """
    if off := _miscounted(eager, found):
        return off
    truth, _ = update(in_float64(state), *in_float64(batch))
    usual = relative_errors(state, truth, eager)
    errors = relative_errors(state, truth, found)
    excess = {name: e - SLACK * usual[name] for name, e in errors.items()}
    if all(e <= tolerance for e in excess.values()):  # and none is NaN
        return ""
    worst = max(excess, key=lambda name: math.inf if math.isnan(excess[name]) else excess[name])
    return (
        f"off by {errors[worst]:.2g} of the change in {worst}, where the eager one is off by "
        f"{usual[worst]:.2g}"
    )


def _miscounted(eager: State, found: State) -> str:
    """Name a tensor of whole numbers that differs."""
    wanted, _ = tree_flatten_with_path(eager)
    given, _ = tree_flatten_with_path(found)
    for (path, a), (_, b) in zip(wanted, given, strict=True):
        if isinstance(a, Tensor) and not a.is_floating_point() and not torch.equal(a, b):
            return f"off in {''.join(map(str, path))}, {b.tolist()} where it is {a.tolist()}"
    return ""


def in_float64(tree: Any) -> Any:
    """Every floating-point tensor of a pytree in double precision."""
    return tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, tree
    )


def relative_errors(before: State, truth: State, found: State) -> dict[str, float]:
    """‖found − truth‖/‖truth − before‖ of every floating-point tensor of the state (`SMALLEST`)."""
    paths, _ = tree_flatten_with_path(truth)
    old, _ = tree_flatten_with_path(before)
    new, _ = tree_flatten_with_path(found)
    errors, changes = {}, {}
    whole: defaultdict[Any, float] = defaultdict(float)
    for (path, t), (_, b), (_, f) in zip(paths, old, new, strict=True):
        if isinstance(t, Tensor) and t.is_floating_point():
            errors[path] = float((f - t).double().norm())
            changes[path] = float((t - b).double().norm())
            whole[path[:-1]] += changes[path] ** 2
    return {
        "".join(map(str, path)): error
        / max(changes[path], SMALLEST * whole[path[:-1]] ** 0.5, 1e-12)
        for path, error in errors.items()
    }
