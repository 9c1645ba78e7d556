"""Your own nn.Module, batch norm and all: adversarial training with CURE, then an evaluation."""

import torch
from torch import nn

import funcrobust as fr
from funcrobust import data
from funcrobust.core import evaluation


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


def train(model: fr.Functional, objective, attack: fr.Attack, digits: data.Dataset) -> fr.State:
    """Take 120 updates. All that a run is, batch-norm statistics included, is in the state."""
    optim = fr.optimizer("adam", 5e-3)
    update, state = fr.make_update(objective, optim), fr.initial_state(model, optim)
    for step in range(120):
        draw = fr.generator(0, "example", step)  # counted: batch and start depend on step alone
        rows = torch.randint(len(digits.x_train), (96,), generator=draw)
        x, y = data.as_float(digits.x_train[rows]), digits.y_train[rows]
        state, _ = update(state, x, y, attack.start(x, draw))
    return state


def main() -> None:
    """Train the same network three ways and compare."""
    digits = data.load("digits")
    torch.manual_seed(0)
    model = fr.functionalize(Net())  # pure functions, and params and buffers as dicts
    ball = fr.linf(0.15)
    attack = fr.rs_fgsm(ball, step_size=0.18)  # a random start, and one FGSM step from there
    objectives = {
        "clean images": fr.robust_training(model, None),
        "adversarial": fr.robust_training(model, attack.perturb),
        "adversarial + CURE": fr.cure_training(model, attack.perturb, lam=0.5, h=1.0),
    }
    x, y = digits.x_test, digits.y_test
    for name, objective in objectives.items():
        end = train(model, objective, attack, digits)
        predict = model.with_buffers(end.buffers)  # evaluation mode, with the trained statistics
        clean = evaluation.correct(predict, end.params, x, y)
        held = evaluation.robust(predict, end.params, x, y, ball, step_size=0.03, steps=20)
        print(f"{name:18s}  clean {clean.float().mean():.1%}  PGD-20 {held.float().mean():.1%}")


if __name__ == "__main__":
    main()
