"""Your own nn.Module, batch norm and all: adversarial training with CURE, then an evaluation."""

import sys

import torch
from torch import nn

import funcrobust as fr
from funcrobust import data
from funcrobust.core import evaluation
from funcrobust.files import place_of
from funcrobust.report import plots


class Net(nn.Module):
    """Any network from images in [0, 1] to logits will do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.SiLU(),
            nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, 10) of images (B, 1, 8, 8)."""
        return self.layers(x)


def compose(attack: fr.Attack | None, lam: float):
    """Compose the loss of an update: adversarial training, and λ times CURE."""

    def terms(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        fit = fr.cross_entropy(modes.training)  # by the batch's own statistics, which then move
        if attack is not None:
            fit = fr.adversarial(fit, attack, start=batch.start)
        return {"loss": (1.0, fit), "curvature": (lam, fr.cure(fr.cross_entropy(modes.batch), 1.0))}

    return terms


def train(model: fr.Functional, terms, attack: fr.Attack, digits: data.Dataset) -> fr.State:
    """Take 120 updates. All that a run is, batch-norm statistics included, is in the state."""
    objective = fr.training_objective(model, terms)
    optim = fr.optimizer("adam", 5e-3)
    update, state = fr.make_update(objective, optim), fr.initial_state(model, optim)
    for step in range(120):
        draw = fr.generator(0, "example", step)  # counted: batch and start depend on step alone
        rows = torch.randint(len(digits.x_train), (96,), generator=draw)
        x, y = data.as_float(digits.x_train[rows]), digits.y_train[rows]
        state, _ = update(state, fr.Batch(x, y, attack.start(x, draw)))
    return state


def main(named: str | None = None) -> None:
    """Train the same network three ways and compare."""
    png, digits = place_of(named, "own_module.png"), data.load("digits")
    torch.manual_seed(0)
    model = fr.functionalize(Net())  # pure functions, and params and buffers as dicts
    ball = fr.linf(0.15)
    attack = fr.rs_fgsm(ball, step_size=0.18)  # a random start, and one FGSM step from there
    compositions = {
        "clean images": compose(None, lam=0.0),
        "adversarial": compose(attack, lam=0.0),
        "adversarial + CURE": compose(attack, lam=0.5),
    }
    x, y = digits.x_test, digits.y_test
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, terms in compositions.items():
        end = train(model, terms, attack, digits)
        predict = model.with_buffers(end.buffers)  # evaluation mode, with the trained statistics
        for radius in (0.0, 0.05, 0.1, 0.15, 0.2):
            pgd = evaluation.Pgd(fr.linf(radius), step_size=radius / 5)
            held = evaluation.robust(predict, end.params, x, y, pgd).double().mean().item()
            curves.setdefault(name, []).append((radius, held))
        (_, clean), *_, (_, robust), _ = curves[name]
        print(f"{name:18s}  clean {clean:.1%}  PGD-20 {robust:.1%}")
    plots.lines({"accuracy under PGD-20": curves}, png, x="L∞ radius", title="Trained at 0.15")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
