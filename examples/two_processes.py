"""One batch on several processes: each has its rows, all come to the weights that one would.

    torchrun --nproc-per-node 2 examples/two_processes.py

Batch norm sees the whole batch, CURE differentiates through its statistics twice, and nothing of
that shows in the composition. Without torchrun there is one process, which shares with nobody.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

import funcrobust as fr
from funcrobust import data
from funcrobust.files import place_of
from funcrobust.report import plots

UPDATES = 40


def train(model: fr.Functional, shard: fr.Shard) -> tuple[list[fr.State], list[float]]:
    """Train on the shard's rows of every batch: the states and losses, update by update."""
    digits, attack = data.load("digits"), fr.rs_fgsm(fr.linf(0.15))

    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        robust = fr.adversarial(fr.cross_entropy(modes.training), attack, start=batch.start)
        bend = fr.cure(fr.cross_entropy(modes.batch), h=1.0)
        return {"loss": (1.0, robust), "curvature": (0.5, bend)}

    objective = fr.training_objective(model.across(shard), compose)
    optim = fr.optimizer("adam", 5e-3)
    update, state = fr.make_update(objective, optim, across=shard), fr.initial_state(model, optim)
    states, losses = [], []
    for step in range(UPDATES):
        draw = fr.generator(0, "example", step)  # counted: every process draws the same batch
        rows = torch.randint(len(digits.x_train), (96,), generator=draw)
        x, y = data.as_float(digits.x_train[rows]).double(), digits.y_train[rows]
        state, metrics = update(state, shard.rows(fr.Batch(x, y, attack.start(x, draw))))
        states.append(state)
        losses.append(metrics["loss"].item())
    return states, losses


def apart(a: fr.State, b: fr.State) -> float:
    """Return the largest difference of a weight."""
    return max((a.params[name] - b.params[name]).abs().max().item() for name in a.params)


def main(named: str | None = None) -> None:
    """Train together, and each process alone on the whole batches; compare."""
    shard, size = fr.Shard(), int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        shard = fr.Shard(dist.get_rank(), size, dist.group.WORLD.group_name)
    png = place_of(named, "two_processes.png") if shard.rank == 0 else None
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Flatten(),
        nn.Linear(1024, 10),
    )  # fmt: skip
    model = fr.functionalize(module.double())
    (shared, its_losses), (alone, losses) = train(model, shard), train(model, fr.Shard())
    gaps = [apart(a, b) for a, b in zip(shared, alone, strict=True)]
    if png is not None:
        said = f"{size} process{'es' * (size > 1)} and one: weights apart by at most {gaps[-1]:.1e}"
        print(f"{said}, after {UPDATES} updates")
        every = range(1, UPDATES + 1)
        panels = {
            "loss": {"one process": losses, f"{size} processes": its_losses},
            "weights apart, · 10⁻⁹": {
                "one process": [0.0] * UPDATES, f"{size} processes": [1e9 * gap for gap in gaps],
            },
        }  # fmt: skip
        drawn = {
            label: {name: list(zip(every, ys, strict=True)) for name, ys in series.items()}
            for label, series in panels.items()
        }
        plots.lines(drawn, png, x="update", title=f"{said} (losses lie on each other)")
        print(f"picture  {png}")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:2])
