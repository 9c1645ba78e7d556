from .adjoint import iterate, iterate_adjoint
from .balls import Ball, l2, linf, unconstrained
from .compiling import compile_checked
from .curvature import cure
from .errors import FuncrobustError
from .functional import Buffers, Functional, Params, Predict, autocast, functionalize
from .losses import Distance, Loss, cross_entropy, l1, margin, squared_l2, ssim
from .objectives import Objective, adversarial, drift, mean, weighted_sum
from .perturbations import Perturbation, fgsm, gradient_step, input_gradient, pgd, psi
from .randomness import generator
from .schedules import Schedule, schedule
from .starts import class_conditional_gaussian
from .training import cure_training, psi_training
from .updates import State, initial_state, make_update, optimizer

__all__ = [
    "Ball", "Buffers", "Distance", "FuncrobustError", "Functional", "Loss", "Objective", "Params",
    "Perturbation", "Predict", "Schedule", "State", "adversarial", "autocast",
    "class_conditional_gaussian", "compile_checked", "cross_entropy", "cure", "cure_training",
    "drift", "fgsm",
    "functionalize", "generator", "gradient_step", "initial_state", "input_gradient", "iterate",
    "iterate_adjoint", "l1", "l2", "linf", "make_update", "margin", "mean", "optimizer", "pgd",
    "psi", "psi_training", "schedule", "squared_l2", "ssim", "unconstrained", "weighted_sum",
]  # fmt: skip
