"""Compiled equals eager, checked: a compiled update must first reproduce the eager one.

Miscompilations are real: torch 2.13's CPU compiler was silently wrong on SGD's weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from funcrobust.errors import FuncrobustError
from funcrobust.updates import State, Update

TOLERANCE = {None: 1e-3, torch.bfloat16: 5e-2}
"""Largest relative error of a compiled update by autocast's dtype: sums in another order, and one
rounding more or less in bfloat16, stay well below; a wrong term does not."""


def compile_checked(
    update: Update,
    state: State,
    *batch: Tensor,
    tolerance: float = TOLERANCE[None],
    backend: str | Callable[..., Any] = "inductor",
) -> Update:
    """Compile ``update`` into one graph, and return it if it reproduces the eager one on a batch.

    Everything the update changes is compared, the optimizer's momentum included (it holds the
    gradient even while a warm-up's learning rate is 0): for each tensor,
    ‖compiled − eager‖/‖eager − before‖ ≤ ``tolerance``. Raises `FuncrobustError` naming the worst
    tensor otherwise. Costs the compilation and two updates; no state is changed.
    """
    compiled: Update = torch.compile(update, fullgraph=True, backend=backend)
    eager_state, _ = update(state, *batch)
    compiled_state, _ = compiled(state, *batch)
    errors = relative_errors(state, eager_state, compiled_state)
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= tolerance:  # also where it is NaN
        raise FuncrobustError(
            f"the compiled update differs from the eager one by {errors[worst]:.2g} of the change "
            f"in {worst} (at most {tolerance:g} is rounding): torch {torch.__version__} "
            "miscompiles it; train with --no-compile"
        )
    return compiled


def relative_errors(before: State, eager: State, compiled: State) -> dict[str, float]:
    """‖compiled − eager‖/‖eager − before‖ of every floating-point tensor of the state."""
    paths, _ = tree_flatten_with_path(eager)
    old, _ = tree_flatten_with_path(before)
    new, _ = tree_flatten_with_path(compiled)
    errors = {}
    for (path, e), (_, b), (_, c) in zip(paths, old, new, strict=True):
        if isinstance(e, Tensor) and e.is_floating_point():
            change, error = (e - b).double().norm(), (c - e).double().norm()
            name = "".join(str(key) for key in path)
            errors[name] = float(error / change.clamp_min(1e-12)) if error > 0 else 0.0
    return errors
