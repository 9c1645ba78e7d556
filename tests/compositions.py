"""Compositions of public names that several tests train with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

import funcrobust as fr


def fast_cure(ball: fr.Ball, *, lam: float, h: float):
    """RS-FGSM, and CURE by the batch's own statistics."""

    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        loss = fr.cross_entropy(modes.training)
        return {
            "loss": (1.0, fr.adversarial(loss, fr.rs_fgsm(ball), start=batch.start)),
            "curvature": (lam, fr.cure(fr.cross_entropy(modes.batch), h)),
        }

    return compose


def psi_of(predict: fr.Predict) -> fr.Perturbation:
    loss = fr.cross_entropy(predict)
    return fr.psi(loss, fr.unconstrained(), step_size=2.0, steps=4, targeted=True)


def drift_and_anchor(weight: float):
    """The ψ document's loss in evaluation mode, and cross-entropy."""

    def compose(modes: fr.Modes, _: fr.Batch) -> fr.Terms:
        anchor = fr.cross_entropy(modes.running)
        return {"drift": (1.0, fr.drift(psi_of(modes.running))), "anchor": (weight, anchor)}

    return compose


def dense(*widths: int, shape: tuple[int, ...] = (), seed: int = 0) -> fr.Functional:
    """A float64 network of linear layers with SiLU, without batch norm, on rows of ``shape``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.SiLU()] if i else []
            layers.append(nn.Linear(a, b))
        return fr.functionalize(nn.Sequential(*layers).double())
