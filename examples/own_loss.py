"""Your own loss in ψ: any (params, x, y) -> (B,). Here a margin to a target class, plus smoothness.

What the loss is to be differentiated in belongs into params: the weight of the smoothness rides
along there, and ψ has an exact derivative in it, as it has in the network.
"""

import sys

import torch
import torch.nn.functional as F

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.files import place_of
from funcrobust.report import plots


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Σ √(d² + 10⁻⁴) over differences d of neighbours: ψ needs the second derivative |d| lacks."""
    squares = (x.diff(dim=-1).square(), x.diff(dim=-2).square())
    return sum((d + 1e-4).sqrt().flatten(1).sum(1) for d in squares)


def smooth_margin(predict: fr.Predict, confidence: float) -> fr.Loss:
    """Build softplus(max_{j≠t} z_j − z_t + confidence) + weight · TV(x), t the target class."""

    def loss(params: fr.Params, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = predict(params, x)
        aimed = F.one_hot(target, logits.shape[-1]).bool()
        gap = logits.masked_fill(aimed, -torch.inf).amax(-1) - (logits * aimed).sum(-1)
        return F.softplus(gap + confidence) + params["weight"] * total_variation(x)

    return loss


def main(named: str | None = None) -> None:
    """Turn images into the next class, more or less smoothly; differentiate in the weight."""
    png = place_of(named, "own_loss.png")
    module, _ = checkpoints.load("cifar10-linf-small")  # SiLU: smooth, as ψ's derivative wants it
    model = fr.functionalize(module.double())
    cifar = data.load("cifar10")
    x, target = data.as_float(cifar.x_test[:16]).double(), (cifar.y_test[:16] + 1) % 10
    loss = smooth_margin(model.predict, confidence=2.0)
    psi = fr.psi(loss, fr.l2(4.0), step_size=0.4, steps=10, targeted=True)

    def made(weight: torch.Tensor, count: int = 16) -> torch.Tensor:
        return psi(model.params | {"weight": weight}, x[:count], target[:count])

    def variation(weight: torch.Tensor) -> torch.Tensor:
        return total_variation(made(weight, count=4)).mean()

    print(f"total variation of the images {total_variation(x).mean():.1f}")
    rows = [("image", x[:10])]
    for weight in torch.tensor([0.0, 0.003, 0.01]):
        end = made(weight)
        reached = (model.predict(model.params, end).argmax(-1) == target).double().mean()
        roughness = total_variation(end).mean()
        rows.append((f"weight {weight:.3f}: variation {roughness:.0f}", end[:10]))
        print(f"weight {weight:.3f}: target class {reached:.0%}, total variation {roughness:.1f}")
    weight, step = torch.tensor(0.003, dtype=torch.float64), 1e-7
    slope = torch.func.grad(variation)(weight)
    difference = (variation(weight + step) - variation(weight - step)) / (2 * step)
    print(f"its slope in the weight: {slope:.2f} through ψ, {difference:.2f} by difference")
    plots.image_grid(
        rows, png, column_labels=[cifar.class_names[c] for c in target[:10]],
        title="Toward the class above, more and more smoothly",
    )  # fmt: skip
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
