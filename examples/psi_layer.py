"""ψ as a layer inside a bigger loss: a denoiser made of nothing but a classifier's gradients.

Noisy images walk down the energy −log Σ exp(logits) (Grathwohl et al. 2020, arXiv:1912.03263) by
two steps of ψ. The squared error to the clean images trains θ through them.
"""

import sys

import torch

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.files import place_of
from funcrobust.report import plots


def main(named: str | None = None) -> None:
    """Train for 20 updates and print the error on held-out images."""
    png = place_of(named, "psi_layer.png")
    # A smooth network (SiLU): with ReLU the input gradient jumps, and so would ψ as θ moves.
    module, _ = checkpoints.load("cifar10-linf-small")
    model = fr.functionalize(module)
    cifar = data.load("cifar10").subset(2048, 64, seed=0)
    x_test, y_test = data.as_float(cifar.x_test), cifar.y_test

    def energy(params: fr.Params, x: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
        return -model.predict(params, x).logsumexp(-1)

    # Steps of the gradient itself, which shrink where it does; targeted means downhill.
    anywhere = fr.unconstrained(bounds=(-1.0, 2.0))
    denoise = fr.psi(energy, anywhere, step_size=0.5, steps=2, targeted=True)
    classify = fr.cross_entropy(model.predict)

    def noisy(x: torch.Tensor, count: int) -> torch.Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=fr.generator(0, "noise", count))

    # What fr.make_update takes: (params, buffers, *batch) -> (scalar, (buffers, metrics)).
    def objective(params: fr.Params, buffers: fr.Buffers, clean, x, y):
        error = fr.squared_l2(denoise(params, x, y), clean).mean()
        total = error + 5.0 * classify(params, clean, y).mean()  # and stay a classifier
        return total, (buffers, {"error": error.detach()})

    @torch.no_grad()
    def held_out(params: fr.Params) -> str:
        x = denoise(params, noisy(x_test, -1), y_test)
        right = (model.predict(params, x_test).argmax(-1) == y_test).float().mean()
        return f"{fr.squared_l2(x, x_test).mean():.1f}, accuracy on clean images {right:.0%}"

    start = fr.squared_l2(noisy(x_test, -1), x_test).mean()
    print(f"squared error of noisy images {start:.1f}")
    print(f"through ψ, as loaded          {held_out(model.params)}")
    optim = fr.optimizer("adam", 3e-4)
    update, state = fr.make_update(objective, optim), fr.initial_state(model, optim)
    for step in range(20):
        rows = torch.randint(2048, (16,), generator=fr.generator(0, "rows", step))
        x, y = data.as_float(cifar.x_train[rows]), cifar.y_train[rows]
        state, _ = update(state, x, noisy(x, step), y)
    print(f"through ψ, after 20 updates   {held_out(state.params)}")
    some = noisy(x_test, -1)
    with torch.no_grad():
        ends = [denoise(params, some, y_test) for params in (model.params, state.params)]
    rows = zip(("noisy", "ψ, as loaded", "ψ, after 20 updates"), (some, *ends), strict=True)
    plots.image_grid(
        [("image", x_test[:10]), *(
            (f"{what}: {fr.squared_l2(x, x_test).mean():.1f}", x[:10].clamp(0, 1))
            for what, x in rows
        )],
        png, title="A classifier's gradients denoise",
        caption="On the left the squared error, a mean over 64 images.",
    )  # fmt: skip
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
