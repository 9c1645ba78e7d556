"""An ensemble by vmap: several networks are one dict of stacked tensors, trained and attacked.

Every operator is a function of parameters, so ``vmap`` over a leading axis makes it one of many
networks: the update itself, PGD, CURE, ψ. No loop, and no class for ensembles.
"""

import sys

import torch
from torch import nn
from torch.func import stack_module_state, vmap

import funcrobust as fr
from funcrobust import data
from funcrobust.files import place_of
from funcrobust.report import plots

MEMBERS, UPDATES = 4, 150


def network(seed: int) -> nn.Module:
    """Build a small network without batch norm, whose weights follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10))


def main(named: str | None = None) -> None:
    """Train four members with one update function, and attack them one by one and together."""
    png, digits = place_of(named, "ensemble.png"), data.load("digits")
    members = [network(seed) for seed in range(MEMBERS)]
    model = fr.functionalize(members[0])
    params, _ = stack_module_state(members)  # every tensor has a leading axis of MEMBERS
    params = {name: p.detach() for name, p in params.items()}
    loss, ball = fr.cross_entropy(model.predict), fr.linf(0.1)
    pgd = fr.pgd(loss, ball, step_size=0.025, steps=5)
    total = fr.weighted_sum((1.0, fr.adversarial(loss, pgd)), (0.1, fr.cure(loss, h=0.5)))
    slopes = vmap(torch.func.grad(fr.mean(total)), in_dims=(0, None, None))
    optim = fr.optimizer("adam", 3e-3)
    state = optim.init(params)
    for step in range(UPDATES):
        rows = torch.randint(len(digits.x_train), (128,), generator=fr.generator(0, "rows", step))
        x, y = data.as_float(digits.x_train[rows]), digits.y_train[rows]
        change, state = optim.update(slopes(params, x, y), state, params=params, inplace=False)
        params = {name: p + change[name] for name, p in params.items()}
    x, y = data.as_float(digits.x_test), digits.y_test

    def accuracy(logits: torch.Tensor) -> str:
        return f"{(logits.argmax(-1) == y).float().mean():.1%}"

    def of_all(params: fr.Params, x: torch.Tensor) -> torch.Tensor:
        return vmap(model.predict, in_dims=(0, None))(params, x).softmax(-1).mean(0).log()

    each = vmap(pgd, in_dims=(0, None, None))(params, x, y)  # (MEMBERS, B, 1, 8, 8)
    together = fr.pgd(fr.cross_entropy(of_all), ball, step_size=0.025, steps=5)
    on_all = together(params, x, y)
    print("member by member under PGD on itself:", end=" ")
    print(*(accuracy(z) for z in vmap(model.predict)(params, each)))
    print(f"the ensemble, clean                 : {accuracy(of_all(params, x))}")
    held = accuracy(of_all(params, on_all))
    print(f"the ensemble, PGD on all at once    : {held}")
    change, factor = plots.change_row(x[:10], on_all[:10])
    alone = ((f"PGD on member {i} ×{factor:g}", each[i]) for i in range(MEMBERS))
    rows = [(what, plots.change_row(x[:10], z[:10], factor)[0]) for what, z in alone]
    plots.image_grid(
        [("image", x[:10]), *rows, (f"PGD on all ×{factor:g}", change)], png,
        title="Four networks, trained and attacked as one",
        caption=f"They share their weaknesses: {held} withstand PGD on all at once.",
    )  # fmt: skip
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
