"""CURE on somebody else's network: a convolutional one and a transformer of timm.

Nothing is particular to timm. A Hugging Face classifier needs a module around it whose forward
returns ``self.net(pixel_values=x).logits``.
"""

import torch

import funcrobust as fr
from funcrobust import data
from funcrobust.models import CIFAR10_MEAN, CIFAR10_STD, Normalized

# A smooth activation, and no branch that starts at zero: there CURE is not continuous in θ.
NETWORKS = {
    "resnet18": {"act_layer": torch.nn.SiLU, "zero_init_last": False},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
}


def slope_of_cure(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> str:
    """Take one gradient of CURE, and the step along it that to first order takes 5 % off."""
    # Normalisation goes inside, so that images and h are in units of [0, 1].
    model = fr.functionalize(Normalized(module, CIFAR10_MEAN, CIFAR10_STD))
    curvature = fr.mean(fr.cure(fr.cross_entropy(model.predict), h=0.75))
    # Fused attention has no second derivative: functionalize takes its plain form instead.
    grads = torch.func.grad(curvature)(model.params, x, y)
    before = curvature(model.params, x, y)
    squared = sum(g.square().sum() for g in grads.values())
    rate = 0.05 * before / squared  # not quite to the last digit: z, a sign, may flip
    after = curvature({k: p - rate * grads[k] for k, p in model.params.items()}, x, y)
    fall = 1 - after / before
    return f"curvature {before:.4f}, a step meant to take 5.0% off takes {fall:.1%} off"


def main() -> None:
    """Measure both networks, untrained, on CIFAR-10 images."""
    try:
        import timm
    except ImportError:
        print("timm is not installed, and this example is about it: pip install timm")
        return
    cifar = data.load("cifar10")
    x, y = data.as_float(cifar.x_test[:16]), cifar.y_test[:16]
    torch.manual_seed(0)
    for name, options in NETWORKS.items():
        module = timm.create_model(name, num_classes=10, **options)
        print(f"{name:21s} {slope_of_cure(module, x, y)}")


if __name__ == "__main__":
    main()
