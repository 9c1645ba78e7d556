"""Randomised smoothing: what no attack can do, beside what one does (Cohen et al. 2019).

A network trained on noisy digits, averaged over that noise, has L2 radii within which its class is
certain. PGD through the same average (Salman et al. 2019, arXiv:1906.04584) must leave at least as
many as are certified at each radius.
"""

import sys

import torch
from torch import nn

import funcrobust as fr
from funcrobust import data
from funcrobust.files import place_of
from funcrobust.report import plots

SIGMA, N = 0.25, 2000
RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def averaged_over(predict: fr.Predict, noise: torch.Tensor) -> fr.Loss:
    """−log of the mean over noise (M, ...) of p_y(x + noise): the smoothed classifier's loss."""

    def loss(params: fr.Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen = torch.stack([predict(params, x + each).log_softmax(-1) for each in noise])
        return -seen.gather(-1, y.expand(len(noise), -1)[..., None])[..., 0].logsumexp(0)

    return loss


def main(named: str | None = None) -> None:
    """Train on noisy digits, certify 100 test images, attack them at every radius."""
    png, digits = place_of(named, "smoothing.png"), data.load("digits")
    torch.manual_seed(0)
    model = fr.functionalize(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 10))
    )
    optim = fr.optimizer("adam", 2e-3)
    update = fr.make_update(fr.objective(fr.cross_entropy(model.predict)), optim)
    state, noise = fr.initial_state(model, optim), fr.random_smoothing(SIGMA)
    for step in range(400):
        draw = fr.generator(0, "example", step)
        rows = torch.randint(len(digits.x_train), (128,), generator=draw)
        x = noise.sample(data.as_float(digits.x_train[rows]), draw)
        state, _ = update(state, x, digits.y_train[rows])

    x, y = data.as_float(digits.x_test[:100]), digits.y_test[:100]
    found = fr.certify(model.predict, state.params, x, sigma=SIGMA, n=N)
    certain = fr.certified_accuracy(found.radius, found.label == y, RADII)
    draws = SIGMA * torch.randn(8, 1, 8, 8, generator=fr.generator(0, "attack"))
    held = []
    for radius in RADII:
        ball = fr.l2(radius, bounds=None)
        pgd = fr.pgd(averaged_over(model.predict, draws), ball, step_size=radius / 5, steps=20)
        attacked = pgd(state.params, x, y)
        seen = fr.predict_smoothed(model.predict, state.params, attacked, sigma=SIGMA, n=N)
        held.append((seen == y).double().mean().item())
    print(f"certified within {RADII[3]} for {certain[3]:.0%}, PGD leaves {held[3]:.0%}")
    broken = sum(h < c for h, c in zip(held, certain.tolist(), strict=True))
    print(f"radii at which PGD leaves fewer: {broken}")
    curves = {
        "certified: no attack of any kind": list(zip(RADII, certain.tolist(), strict=True)),
        "what PGD leaves": list(zip(RADII, held, strict=True)),
    }
    plots.lines({"accuracy": curves}, png, x="L2 radius", title=f"Smoothed digits, σ = {SIGMA}")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
