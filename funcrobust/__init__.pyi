from .core.attacks import Attack, n_fgsm, pgd_k, rs_fgsm, zerograd
from .core.balls.ball import Ball
from .core.balls.composed import masked, with_block_means, with_steps
from .core.balls.fourier import fourier
from .core.balls.l2 import l2
from .core.balls.linf import linf, smooth_linf
from .core.balls.smoothing import random_smoothing
from .core.balls.unconstrained import unconstrained
from .core.derivatives.adjoint import iterate, iterate_adjoint
from .core.derivatives.implicit import iterate_implicit
from .core.errors import FuncrobustError
from .core.losses import (
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
from .core.network.functional import Buffers, Functional, Params, Predict, autocast, functionalize
from .core.objectives.algebra import (
    Objective,
    adversarial,
    drift,
    helper,
    mean,
    trades,
    weighted_sum,
)
from .core.perturbations.projected_gradient import (
    Perturbation,
    PerturbationOf,
    fgsm,
    gradient_step,
    input_gradient,
    pgd,
    psi,
)
from .core.randomness import generator, key
from .core.regularisers.cure import cure, top_curvature
from .core.regularisers.linearity import (
    elle,
    gradient_alignment,
    input_gradient_norm,
    linearity_error,
    local_linearity,
)
from .core.starts import GaussianStarts, class_conditional_gaussian
from .core.training.compiling import compile_checked
from .core.training.drift import STARTS, psi_training, with_learned_starts
from .core.training.robust import Term, Views, cure_term, cure_training, robust_training
from .core.training.schedules import Schedule, schedule
from .core.training.updates import State, averaged, ema, initial_state, make_update, optimizer

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
    "key",
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
    "top_curvature",
    "trades",
    "unconstrained",
    "weighted_sum",
    "with_block_means",
    "with_learned_starts",
    "with_steps",
    "zerograd",
]  # fmt: skip
