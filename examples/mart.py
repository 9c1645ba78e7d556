"""A published method in fifteen lines: MART (Wang et al. 2020, ICLR) beside adversarial training.

"Improving adversarial robustness requires revisiting misclassified examples": a boosted cross-
entropy on x̂, and a KL term that weighs most where the clean image is not classified yet.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import funcrobust as fr
from funcrobust import data
from funcrobust.core import evaluation
from funcrobust.files import place_of
from funcrobust.report import plots


def mart(predict: fr.Predict, attack: fr.Perturbation, beta: float) -> fr.Loss:
    """−log p_y(x̂) − log(1 − max_{k≠y} p_k(x̂)) + β·KL(p(x) ‖ p(x̂))·(1 − p_y(x))."""

    def loss(params: fr.Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_hat = attack(params, x, y).detach()
        clean, seen = (predict(params, z).log_softmax(-1) for z in (x, x_hat))
        of_y = F.one_hot(y, seen.shape[-1]).bool()
        right = (seen * of_y).sum(-1)
        wrong = seen.masked_fill(of_y, -torch.inf).exp().amax(-1).clamp_max(1 - 1e-6)
        unsure = 1 - (clean.exp() * of_y).sum(-1)
        kl = (clean.exp() * (clean - seen)).sum(-1)
        return -right - torch.log1p(-wrong) + beta * kl * unsure

    return loss


def train(model: fr.Functional, loss: fr.Loss, digits: data.Dataset) -> fr.Params:
    """Take 300 updates of Adam on batches of 128."""
    optim = fr.optimizer("adam", 3e-3)
    update, state = fr.make_update(fr.objective(loss), optim), fr.initial_state(model, optim)
    for step in range(300):
        rows = torch.randint(len(digits.x_train), (128,), generator=fr.generator(0, "rows", step))
        state, _ = update(state, data.as_float(digits.x_train[rows]), digits.y_train[rows])
    return state.params


def main(named: str | None = None) -> None:
    """Train the same network both ways, and attack it over a range of radii."""
    png, digits = place_of(named, "mart.png"), data.load("digits")
    torch.manual_seed(0)
    model = fr.functionalize(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
    )
    pgd = fr.pgd(fr.cross_entropy(model.predict), fr.linf(0.15), step_size=0.05, steps=5)
    losses = {
        "adversarial training": fr.adversarial(fr.cross_entropy(model.predict), pgd),
        "MART, β = 5": mart(model.predict, pgd, beta=5.0),
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, loss in losses.items():
        params = train(model, loss, digits)
        for radius in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25):
            attack = evaluation.Pgd(fr.linf(radius), step_size=radius / 4)
            held = evaluation.robust(model.predict, params, digits.x_test, digits.y_test, attack)
            curves.setdefault(name, []).append((radius, held.double().mean().item()))
        clean, *_, there, _, _ = (accuracy for _, accuracy in curves[name])
        print(f"{name:20s}  clean {clean:.1%}  PGD-20 at 0.15 {there:.1%}")
    plots.lines({"accuracy under PGD-20": curves}, png, x="L∞ radius", title="MART on the digits")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
