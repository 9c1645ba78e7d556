"""Universal perturbations through ψ: one image for each class that, added to any, makes it that.

ψ walks whatever the loss calls x. Here that is not a batch of images but a batch of perturbations
(Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), each judged on many images at once.
"""

import sys

import torch
from torch.func import vmap

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.files import place_of
from funcrobust.report import plots

RADIUS, CLASSES = 2.0, 10


def universal(predict: fr.Predict, images: torch.Tensor) -> fr.Loss:
    """Mean over ``images`` of the cross-entropy at image + δ, of a batch of δ and its targets."""

    def of_one(params: fr.Params, delta: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen = (images + delta).clamp(0, 1)
        return fr.cross_entropy(predict)(params, seen, target.expand(len(images))).mean()

    return vmap(of_one, in_dims=(None, 0, 0))


def main(named: str | None = None) -> None:
    """Learn ten perturbations for each of two networks on 32 images; add them to 200 others."""
    png, cifar = place_of(named, "universal.png"), data.load("cifar10").subset(32, 200, seed=0)
    x, x_test, y_test = data.as_float(cifar.x_train), data.as_float(cifar.x_test), cifar.y_test
    targets, rows = torch.arange(CLASSES), []
    for name in ("cifar10-standard-resnet20", "cifar10-linf-tiny"):
        model = fr.functionalize(checkpoints.load(name)[0])
        loss, ball = universal(model.predict, x), fr.l2(RADIUS, bounds=None)
        psi = fr.psi(loss, ball, step_size=RADIUS / 5, steps=12, targeted=True)
        shares = []
        with torch.no_grad():
            learned = psi(model.params, torch.zeros(CLASSES, 3, 32, 32), targets)
            for target, delta in enumerate(learned):
                others = x_test[y_test != target]
                seen = model.predict(model.params, (others + delta).clamp(0, 1)).argmax(-1)
                shares.append((seen == target).double().mean())
        share = torch.stack(shares).mean().item()
        print(f"{name}: one perturbation makes {share:.0%} of all images its class")
        change, factor = plots.change_row(torch.zeros_like(learned), learned)
        shown = (x_test[y_test == 3][0] + learned).clamp(0, 1)
        rows += [(f"{name}: δ ×{factor:g}", change), (f"a cat + δ; of all: {share:.0%}", shown)]
    plots.image_grid(
        rows, png, column_labels=cifar.class_names, title=f"Universal perturbations, L2 ≤ {RADIUS}",
        caption="Each δ, learned on 32 images and added to 200 others, makes of the share on the "
        "left the class above.",
    )  # fmt: skip
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
