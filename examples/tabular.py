"""Features that are not images: measurements of tumours, of any shape (B, d), and without bounds.

Every operator takes what has a leading batch axis. A ball says what an adversary may do: here each
of thirty measurements is off by at most a share of its standard deviation.
"""

import sys

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.files import place_of
from funcrobust.report import plots

RADIUS = 0.4
"""In standard deviations of each feature."""


def split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training and test features (N, 30) in standard deviations, with classes (N,)."""
    found = load_breast_cancer()
    x, y = torch.as_tensor(found.data), torch.as_tensor(found.target).long()
    order = torch.randperm(len(x), generator=fr.generator(0, "split"))
    train, test = order[:380], order[380:]
    mean, std = x[train].mean(0), x[train].std(0)
    x = ((x - mean) / std).float()
    return x[train], y[train], x[test], y[test]


def train(model: fr.Functional, loss: fr.Loss, x: torch.Tensor, y: torch.Tensor) -> fr.Params:
    """Take 200 updates on all there is."""
    optim = fr.optimizer("adamw", 3e-3, weight_decay=0.05)
    update, state = fr.make_update(fr.objective(loss), optim), fr.initial_state(model, optim)
    for _ in range(200):
        state, _ = update(state, x, y)
    return state.params


def main(named: str | None = None) -> None:
    """Train with and without an adversary, and attack over a range of radii."""
    png, (x, y, x_test, y_test) = place_of(named, "tabular.png"), split()
    torch.manual_seed(0)
    model = fr.functionalize(nn.Sequential(nn.Linear(30, 64), nn.SiLU(), nn.Linear(64, 2)))
    plain = fr.cross_entropy(model.predict)
    pgd = fr.pgd(plain, fr.linf(RADIUS, bounds=None), step_size=RADIUS / 4, steps=7)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, loss in {"plain": plain, "adversarial": fr.adversarial(plain, pgd)}.items():
        params = train(model, loss, x, y)
        for radius in (0.0, 0.1, 0.2, 0.3, RADIUS, 0.5, 0.6):
            attack = evaluation.Pgd(fr.linf(radius, bounds=None), step_size=radius / 8)
            held = evaluation.robust(model.predict, params, x_test, y_test, attack)
            curves.setdefault(name, []).append((radius, held.double().mean().item()))
        clean, *_, there, _, _ = (accuracy for _, accuracy in curves[name])
        print(f"{name} training: accuracy {clean:.1%}, PGD-20 at {RADIUS} sd {there:.1%}")
    title = "Diagnoses from thirty measurements, each off by as much"
    plots.lines({"accuracy under PGD-20": curves}, png, x="L∞ radius, sd", title=title)
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
