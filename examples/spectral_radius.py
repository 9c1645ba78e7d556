"""How ψ stretches images: spectral radius and largest singular value of ∂ψ/∂x, per example.

Power iteration on the Jacobian J needs products alone: J v is a jvp, Jᵀu a vjp. It is written for
one image, and vmap makes it one for a batch.
"""

import sys

import torch
from torch.func import jacfwd, jvp, vjp, vmap

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.files import place_of
from funcrobust.report import plots


def stretch(f, image: torch.Tensor, v: torch.Tensor, rounds: int) -> torch.Tensor:
    """Return the spectral radius and the largest singular value of f's Jacobian, (2,)."""
    pull = vjp(f, image)[1]

    def push(v: torch.Tensor) -> torch.Tensor:
        return jvp(f, (image,), (v / v.norm(),))[1]

    w, growth = v, []
    for _ in range(rounds):
        v, w = push(v), pull(push(w))[0]
        growth.append(v.norm().log())
    # Averaged over some rounds, since a complex pair of eigenvalues makes the growth swing.
    radius = torch.stack(growth[-6:]).mean().exp()
    return torch.stack([radius, w.norm().sqrt()])


def main(named: str | None = None) -> None:
    """Hold it against dense Jacobians on 8x8 crops, then measure whole images."""
    png = place_of(named, "spectral_radius.png")
    module, _ = checkpoints.load("cifar10-linf-small")
    model = fr.functionalize(module)
    cifar = data.load("cifar10")
    x, y = data.as_float(cifar.x_test[:3]), cifar.y_test[:3]
    loss = fr.cross_entropy(model.predict)
    psi = fr.psi(loss, fr.l2(30.0), step_size=0.25, steps=2, targeted=True)

    def one(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return psi(model.params, image[None], label[None])[0]

    def found(x: torch.Tensor, rounds: int) -> torch.Tensor:
        def of_one(image: torch.Tensor, label: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return stretch(lambda image: one(image, label), image, v, rounds)

        return vmap(of_one)(x, y, torch.randn(x.shape, generator=fr.generator(0, "power")))

    crops = x[:, :, 12:20, 12:20]
    dense = vmap(jacfwd(one))(crops, y).flatten(4).flatten(1, 3)  # (3, 192, 192)
    radii, values = torch.linalg.eigvals(dense).abs().amax(1), torch.linalg.matrix_norm(dense, 2)
    exact = torch.stack([radii, values], 1)
    print("for each image: spectral radius, largest singular value")
    rows = {"crops, dense": exact, "crops, power": found(crops, 40), "32x32 images": found(x, 10)}
    for what, pairs in rows.items():
        print(f"{what}:", *(f"{radius:.3f} {value:.3f};" for radius, value in pairs.tolist()))
    estimates = {count: found(crops, count)[:, 1].tolist() for count in (4, 8, 16)}
    estimates[40] = rows["crops, power"][:, 1].tolist()
    curves = {}
    for i, value in enumerate(exact[:, 1].tolist()):
        curves[f"crop {i}, power"] = [(count, values[i]) for count, values in estimates.items()]
        curves[f"crop {i}, dense"] = [(4, value), (40, value)]
    label = "largest singular value of ∂ψ/∂x"
    plots.lines({label: curves}, png, x="rounds of power iteration", title="How ψ stretches crops")
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
