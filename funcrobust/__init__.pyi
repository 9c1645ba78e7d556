from .adjoint import iterate, iterate_adjoint
from .attacks import Attack, n_fgsm, pgd_k, rs_fgsm, zerograd
from .balls import Ball, fourier, l2, linf, random_smoothing, smooth_linf, unconstrained
from .compiling import compile_checked
from .composed_balls import masked, measured, steps_of
from .curvature import cure, top_curvature
from .errors import FuncrobustError
from .functional import Buffers, Functional, Params, Predict, autocast, functionalize
from .implicit import iterate_implicit
from .linearity import (
    elle,
    gradient_alignment,
    input_gradient_norm,
    linearity_error,
    local_linearity,
)
from .losses import (
    Distance,
    Loss,
    away_from,
    cross_entropy,
    distillation,
    entropy,
    kl_divergence,
    l1,
    logit,
    margin,
    squared_l2,
    ssim,
)
from .objectives import Objective, adversarial, drift, helper, mean, trades, weighted_sum
from .perturbations import (
    Perturbation,
    PerturbationOf,
    fgsm,
    gradient_step,
    input_gradient,
    pgd,
    psi,
)
from .randomness import generator
from .schedules import Schedule, schedule
from .starts import GaussianStarts, class_conditional_gaussian
from .training import Term, Views, cure_term, cure_training, robust_training
from .transfer import STARTS, psi_training, with_learned_starts
from .updates import State, averaged, ema, initial_state, make_update, optimizer

__all__ = [
    "STARTS",
    "Attack",
    "Ball",
    "Buffers",
    "Distance",
    "FuncrobustError",
    "Functional",
    "GaussianStarts",
    "Loss",
    "Objective",
    "Params",
    "Perturbation",
    "PerturbationOf",
    "Predict",
    "Schedule",
    "State",
    "Term",
    "Views",
    "adversarial",
    "autocast",
    "averaged",
    "away_from",
    "class_conditional_gaussian",
    "compile_checked",
    "cross_entropy",
    "cure",
    "cure_term",
    "cure_training",
    "distillation",
    "drift",
    "elle",
    "ema",
    "entropy",
    "fgsm",
    "fourier",
    "functionalize",
    "generator",
    "gradient_alignment",
    "gradient_step",
    "helper",
    "initial_state",
    "input_gradient",
    "input_gradient_norm",
    "iterate",
    "iterate_adjoint",
    "iterate_implicit",
    "kl_divergence",
    "l1",
    "l2",
    "linearity_error",
    "linf",
    "local_linearity",
    "logit",
    "make_update",
    "margin",
    "masked",
    "mean",
    "measured",
    "n_fgsm",
    "optimizer",
    "pgd",
    "pgd_k",
    "psi",
    "psi_training",
    "random_smoothing",
    "robust_training",
    "rs_fgsm",
    "schedule",
    "smooth_linf",
    "squared_l2",
    "ssim",
    "steps_of",
    "top_curvature",
    "trades",
    "unconstrained",
    "weighted_sum",
    "with_learned_starts",
    "zerograd",
]  # fmt: skip
