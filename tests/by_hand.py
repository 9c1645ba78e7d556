"""Training losses in plain autograd on the module itself, apart from the library."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from problems import Problem
from torch import Tensor, nn

EPS, ALPHA = 8 / 255, 10 / 255


class Step(NamedTuple):
    """What one evaluation of an objective gives."""

    total: Tensor
    metrics: dict[str, Tensor]
    gradient: dict[str, Tensor]
    buffers: dict[str, Tensor]
    x_hat: Tensor


def rs_fgsm(problem: Problem, start: Tensor, loss, *, seen: str = "running") -> Tensor:
    """One step of FGSM by ``loss(module, x)`` from ``start``, in training or evaluation mode."""
    module = problem.model.module()
    module.train(seen == "training")
    x = start.clone().requires_grad_()
    slope = torch.autograd.grad(loss(module, x).sum(), x)[0]
    delta = (start + ALPHA * slope.sign() - problem.x).clamp(-EPS, EPS)
    return (problem.x + delta).clamp(0, 1)


def in_mode(problem: Problem, statistics: str, x_hat: Tensor) -> nn.Module:
    """A copy with running statistics, the batch's own, or those of the batch x̂ held."""
    module = problem.model.module()
    if statistics == "held":  # with momentum 1 the running statistics are the batch's
        module.train()
        module.net[1].momentum = 1.0
        module(x_hat)
        return module.eval()
    return module.train(statistics == "batch")


def summed(module: nn.Module, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: gradients.get(k, 0.0) + p.grad for k, p in module.named_parameters()}


def cure(
    problem: Problem, start: Tensor, *, lam: float, h: float, n: int, statistics: str,
    seen: str = "running",
) -> Step:  # fmt: skip
    """RS-FGSM + λ·CURE of the first n examples."""

    def cross_entropy(module, x):
        return F.cross_entropy(module(x), problem.y, reduction="none")

    x_hat = rs_fgsm(problem, start, cross_entropy, seen=seen)
    module = in_mode(problem, statistics, x_hat)
    x = problem.x[:n].clone().requires_grad_()

    def slope(point):
        loss = F.cross_entropy(module(point), problem.y[:n], reduction="sum")
        return torch.autograd.grad(loss, x, create_graph=True)[0]

    g = slope(x)
    z = h * g.detach().sign() / g[0].numel() ** 0.5
    curvature = (slope(x + z) - g).flatten(1).norm(dim=1).mean()
    (lam * curvature).backward()
    gradient = summed(module, {})
    module = problem.model.module().train()
    robust = F.cross_entropy(module(x_hat), problem.y)
    robust.backward()
    metrics = {"loss": robust.detach(), "curvature": curvature.detach()}
    total = robust.detach() + lam * curvature.detach()
    return Step(total, metrics, summed(module, gradient), dict(module.named_buffers()), x_hat)


def trades(
    problem: Problem, start: Tensor, *, beta: float, smoothing: float = 0.0, seen: str = "running"
) -> Step:
    """Zhang et al.: x̂ ascends the KL in evaluation mode; the loss is in training mode, x first."""

    def kl(logits, natural):
        log_p = F.log_softmax(logits, 1)
        return F.kl_div(log_p, F.softmax(natural, 1), reduction="none").sum(1)

    def divergence(module, x):
        return kl(module(x), module(problem.x).detach())

    x_hat = rs_fgsm(problem, start, divergence, seen=seen)
    module = problem.model.module().train()
    natural, robust = module(problem.x), module(x_hat)
    total = F.cross_entropy(natural, problem.y, label_smoothing=smoothing)
    total = total + beta * kl(robust, natural).mean()
    total.backward()
    accuracy = (robust.argmax(1) == problem.y).float().mean()
    metrics = {"loss": total.detach(), "accuracy": accuracy}
    return Step(total.detach(), metrics, summed(module, {}), dict(module.named_buffers()), x_hat)
