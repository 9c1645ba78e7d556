from .core.applications.generation import generation
from .core.applications.inpainting import inpainting
from .core.applications.painting import painting
from .core.applications.super_resolution import super_resolution
from .core.attacks import Attack, apgd_k, n_fgsm, pgd_k, rs_fgsm, zerograd
from .core.balls.ball import Ball
from .core.balls.composed import masked, with_block_means, with_steps
from .core.balls.fourier import fourier
from .core.balls.l2 import l2
from .core.balls.linf import linf, smooth_linf
from .core.balls.smoothing import random_smoothing
from .core.balls.unconstrained import unconstrained
from .core.certification import (
    Certified,
    certified_accuracy,
    certify,
    largest_radius,
    predict_smoothed,
)
from .core.degrading import Degrade, gaussian_noise, in_shares, mixed_with
from .core.derivatives.adjoint import adjoint
from .core.derivatives.implicit import implicit
from .core.derivatives.iteration import Derivative, Step, iterate, unrolled
from .core.derivatives.truncated import one_step, truncated
from .core.errors import FuncrobustError
from .core.losses import (
    Distance,
    Loss,
    away_from,
    cross_entropy,
    distillation,
    entropy,
    kl_divergence,
    l1_distance,
    log_odds,
    logit,
    margin,
    squared_l2,
    ssim,
)
from .core.margins import dlr, targeted_dlr
from .core.network.expectation import expectation
from .core.network.functional import Buffers, Functional, Params, Predict, autocast, functionalize
from .core.objectives.algebra import (
    Objective,
    adversarial,
    at,
    drift,
    helper_examples,
    mean,
    restoration,
    through,
    trades,
    weighted_sum,
)
from .core.objectives.lift import (
    Batch,
    Metrics,
    Modes,
    Terms,
    TrainingObjective,
    objective,
    training_objective,
)
from .core.perturbations.auto_pgd import apgd
from .core.perturbations.projected_gradient import (
    Perturbation,
    fgsm,
    gradient_step,
    input_gradient,
    pgd,
    psi,
)
from .core.perturbations.sampling import part_of_the_way, sampler
from .core.randomness import generator, key
from .core.regularisers.cure import cure, gradient_difference, top_curvature
from .core.regularisers.linearity import (
    elle,
    gradient_alignment,
    input_gradient_norm,
    linearity_error,
    local_linearity,
)
from .core.shards import Shard
from .core.starts import GaussianStarts, class_conditional_gaussian
from .core.training.capturing import capture_checked
from .core.training.compiling import compile_checked
from .core.training.optimizers import Optimizer, matrices, optimizer
from .core.training.schedules import Schedule, schedule
from .core.training.sharding import sharded, whole
from .core.training.updates import (
    State,
    Update,
    averaged,
    ema,
    initial_state,
    make_update,
)
from .core.walks import Restoring, Walk

__version__: str

__all__ = [
    "Attack",
    "Ball",
    "Batch",
    "Buffers",
    "Certified",
    "Degrade",
    "Derivative",
    "Distance",
    "FuncrobustError",
    "Functional",
    "GaussianStarts",
    "Loss",
    "Metrics",
    "Modes",
    "Objective",
    "Optimizer",
    "Params",
    "Perturbation",
    "Predict",
    "Restoring",
    "Schedule",
    "Shard",
    "State",
    "Step",
    "Terms",
    "TrainingObjective",
    "Update",
    "Walk",
    "adjoint",
    "adversarial",
    "apgd",
    "apgd_k",
    "at",
    "autocast",
    "averaged",
    "away_from",
    "capture_checked",
    "certified_accuracy",
    "certify",
    "class_conditional_gaussian",
    "compile_checked",
    "cross_entropy",
    "cure",
    "distillation",
    "dlr",
    "drift",
    "elle",
    "ema",
    "entropy",
    "expectation",
    "fgsm",
    "fourier",
    "functionalize",
    "gaussian_noise",
    "generation",
    "generator",
    "gradient_alignment",
    "gradient_difference",
    "gradient_step",
    "helper_examples",
    "implicit",
    "in_shares",
    "initial_state",
    "inpainting",
    "input_gradient",
    "input_gradient_norm",
    "iterate",
    "key",
    "kl_divergence",
    "l1_distance",
    "l2",
    "largest_radius",
    "linearity_error",
    "linf",
    "local_linearity",
    "log_odds",
    "logit",
    "make_update",
    "margin",
    "masked",
    "matrices",
    "mean",
    "mixed_with",
    "n_fgsm",
    "objective",
    "one_step",
    "optimizer",
    "painting",
    "part_of_the_way",
    "pgd",
    "pgd_k",
    "predict_smoothed",
    "psi",
    "random_smoothing",
    "restoration",
    "rs_fgsm",
    "sampler",
    "schedule",
    "sharded",
    "smooth_linf",
    "squared_l2",
    "ssim",
    "super_resolution",
    "targeted_dlr",
    "through",
    "top_curvature",
    "trades",
    "training_objective",
    "truncated",
    "unconstrained",
    "unrolled",
    "weighted_sum",
    "whole",
    "with_block_means",
    "with_steps",
    "zerograd",
]  # fmt: skip
