"""CURE on somebody else's network: a convolutional one and a transformer of timm.

Nothing is particular to timm. A Hugging Face classifier needs a module around it whose forward
returns ``self.net(pixel_values=x).logits``.
"""

import sys

import torch

import funcrobust as fr
from funcrobust import data
from funcrobust.files import place_of
from funcrobust.models import CIFAR10_MEAN, CIFAR10_STD, Normalized
from funcrobust.report import plots

# A smooth activation, and no branch that starts at zero: there CURE is not continuous in θ.
NETWORKS = {
    "resnet18": {"act_layer": torch.nn.SiLU, "zero_init_last": False},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
}


MEANT = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
"""Percent of the curvature that steps along its gradient are to take off, to first order."""


def falls(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Take one gradient of CURE, and return the percent that the steps along it take off."""
    # Normalisation goes inside, so that images and h are in units of [0, 1].
    model = fr.functionalize(Normalized(module, CIFAR10_MEAN, CIFAR10_STD))
    curvature = fr.mean(fr.cure(fr.cross_entropy(model.predict), h=0.75))
    # Fused attention has no second derivative: functionalize takes its plain form instead.
    grads = torch.func.grad(curvature)(model.params, x, y)
    before = curvature(model.params, x, y)
    squared = sum(g.square().sum() for g in grads.values())
    found = []
    for percent in MEANT:
        rate = percent / 100 * before / squared  # not to the last digit: z, a sign, may flip
        after = curvature({k: p - rate * grads[k] for k, p in model.params.items()}, x, y)
        found.append(100 * float(1 - after / before))
    return found


def main(named: str | None = None) -> None:
    """Measure both networks, untrained, on CIFAR-10 images."""
    png = place_of(named, "cure_on_timm.png")
    try:
        import timm
    except ImportError:
        print("timm is not installed, and this example is about it: pip install timm")
        return
    cifar = data.load("cifar10")
    x, y = data.as_float(cifar.x_test[:16]), cifar.y_test[:16]
    torch.manual_seed(0)
    curves = {"to first order": list(zip(MEANT, MEANT, strict=True))}
    for name, options in NETWORKS.items():
        module = timm.create_model(name, num_classes=10, **options)
        found = falls(module, x, y)
        curves[name] = list(zip(MEANT, found, strict=True))
        print(
            f"{name:21s} a step meant to take 5.0% of the curvature off takes {found[-1]:.1f}% off"
        )
    panel = {"taken off, %": curves}
    plots.lines(panel, png, x="meant to be taken off CURE, %", title="Steps along CURE's gradient")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
