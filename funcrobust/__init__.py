"""funcrobust: functional adversarial robustness for PyTorch, on torch.func.

A loss is a pure function ``(params, x, y) -> (B,)``; an operator maps losses to losses.
"""

from funcrobust.adjoint import iterate, iterate_adjoint
from funcrobust.balls import Ball, l2, linf, unconstrained
from funcrobust.curvature import cure
from funcrobust.errors import FuncrobustError
from funcrobust.functional import Buffers, Functional, Params, Predict, autocast, functionalize
from funcrobust.losses import Distance, Loss, cross_entropy, l1, margin, squared_l2, ssim
from funcrobust.objectives import Objective, adversarial, drift, mean, weighted_sum
from funcrobust.perturbations import Perturbation, fgsm, gradient_step, input_gradient, pgd, psi
from funcrobust.randomness import generator
from funcrobust.schedules import Schedule, schedule

# torchopt costs a fifth of torch's own import time: what needs it is loaded when first asked for.
_LAZY = {
    "State": "updates",
    "initial_state": "updates",
    "make_update": "updates",
    "optimizer": "updates",
    "cure_training": "training",
    "psi_training": "training",
}

__all__ = [
    "Ball", "Buffers", "Distance", "FuncrobustError", "Functional", "Loss", "Objective", "Params",
    "Perturbation", "Predict", "Schedule", "adversarial", "autocast", "cross_entropy", "cure",
    "drift", "fgsm", "functionalize", "generator", "gradient_step", "input_gradient", "iterate",
    "iterate_adjoint", "l1", "l2", "linf", "margin", "mean", "pgd", "psi", "schedule",
    "squared_l2", "ssim", "unconstrained", "weighted_sum", *_LAZY,
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"funcrobust.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'funcrobust' has no attribute {name!r}")
