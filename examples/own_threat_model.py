"""Your own threat model, low-frequency L2 (Guo et al. 2019): to attack in, to take ∂ψ through."""

import sys

import torch

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.core import evaluation
from funcrobust.files import place_of
from funcrobust.report import plots


class LowFrequency:
    """{x : ‖x − c‖₂ ≤ radius, x − c spanned by k×k cosines}, for size×size images."""

    differentiable = True  # steepest has a useful derivative; a sign would not

    def __init__(self, radius: float, k: int, size: int) -> None:
        self.l2 = fr.l2(radius)  # built on: it minds the data bounds, and √'(0)
        angles = torch.outer(torch.arange(k), torch.arange(size) + 0.5) * (torch.pi / size)
        waves = torch.nn.functional.normalize(angles.double().cos())
        self.keep = waves.T @ waves  # (size, size): the projection onto the first k cosines

    def low(self, x: torch.Tensor) -> torch.Tensor:
        """Drop the high frequencies of columns and rows."""
        return self.keep @ x @ self.keep

    def project(self, x: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        return self.l2.project(center + self.low(x - center), center)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the unit direction of fastest ascent among those allowed."""
        return self.l2.steepest(self.low(gradient))

    def sample(self, center: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a random start."""
        return self.project(self.l2.sample(center, generator), center)


def main(named: str | None = None) -> None:
    """Attack in the ball, then hold ψ's derivative through it against a finite difference."""
    png = place_of(named, "own_threat_model.png")
    module, _ = checkpoints.load("cifar10-linf-small")  # SiLU: with ReLU, ψ jumps as θ moves
    model = fr.functionalize(module.double())
    cifar = data.load("cifar10")
    x, y = data.as_float(cifar.x_test[:40]).double(), cifar.y_test[:40]
    loss, ball = fr.cross_entropy(model.predict), LowFrequency(radius=1.0, k=8, size=32)
    rows = [("image", x[:8])]
    for name, threat in {"L2": fr.l2(1.0), "low-frequency L2": ball}.items():
        seen = fr.pgd(loss, threat, step_size=0.3, steps=6)(model.params, x, y)
        share = ball.low(seen - x).square().sum() / (seen - x).square().sum()
        held = evaluation.correct(model.predict, model.params, seen, y).double().mean()
        change, factor = plots.change_row(x[:8], seen[:8])
        rows.append((f"{name}, change ×{factor:g}: {share:.0%} of it low", change))
        print(f"{name}, radius 1: accuracy {held:.1%}, low-frequency energy {share:.1%}")
    title = "PGD in L2, and in low-frequency L2 alone"
    plots.image_grid(rows, png, title=title, caption="Gray is no change.")
    drift = fr.mean(fr.drift(fr.psi(loss, ball, step_size=0.1, steps=5, targeted=True)))
    x, y = x[:8], y[:8]
    grads = torch.func.grad(drift)(model.params, x, y)
    ahead, behind = ({k: p + s * grads[k] for k, p in model.params.items()} for s in (1e-6, -1e-6))
    difference = (drift(ahead, x, y) - drift(behind, x, y)) / 2e-6
    exact = sum(g.square().sum() for g in grads.values())
    print(f"slope of ψ's drift along its gradient {exact:.8f}, by difference {difference:.8f}")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
