"""What tests run on two processes: importable, so that they find it."""

from __future__ import annotations

import torch
from torch import nn

import funcrobust as fr
from funcrobust.core.network.functional import functionalize
from funcrobust.core.objectives.lift import Batch, training_objective
from funcrobust.core.training.optimizers import optimizer
from funcrobust.core.training.sharding import is_spread, sharded, whole
from funcrobust.core.training.updates import initial_state, make_update
from funcrobust.running.processes import Processes

STEPS = 3


class Net(nn.Module):
    """Every kind of norm and mask: batch norm with statistics and without, dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Dropout(0.2),
            nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.SiLU(), nn.Flatten(),
            nn.Linear(96, 8), nn.BatchNorm1d(8, track_running_stats=False, affine=False),
            nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def compose(modes, batch):
    """What trainings are made of: an attack, derivatives of gradients by each mode, a first part"""
    attack = fr.rs_fgsm(fr.linf(0.05)).perturb(fr.cross_entropy(modes.batch))
    psi = fr.psi(fr.logit(modes.running), fr.unconstrained(), targeted=True, steps=2, step_size=0.5)
    part = batch.first(len(batch.x) // 2)
    return {
        "loss": (1.0, fr.adversarial(fr.cross_entropy(modes.training), attack, start=batch.start)),
        "curvature": (0.5, fr.at(fr.cure(fr.cross_entropy(modes.batch), 0.3), part.x, part.y)),
        "held": (0.1, fr.cross_entropy(modes.held)),
        "drift": (0.2, fr.drift(psi)),
    }


def batch_of(step):
    draw = fr.generator(0, "batch", step)
    x = torch.rand(8, 2, 8, 8, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (8,), generator=draw)
    start = fr.linf(0.05).sample(x, draw)
    return Batch(x, y, start=start, key=fr.key(0, "dropout", step))


def trained(shard, accumulate=1):
    torch.manual_seed(0)
    model = functionalize(Net().double()).across(shard)
    optim = optimizer("sgd", 0.1, clip_norm=1.0)
    objective = training_objective(model, compose)
    update = make_update(objective, optim, decay=0.9, accumulate=accumulate, across=shard)
    state, found = initial_state(model, optim, averaged=True), []
    for step in range(STEPS):
        state, metrics = update(state, shard.rows(batch_of(step)))
        found.append(metrics)
    return state, found


def spread(shard, name):
    """The same with parameters, momenta and average spread over the processes."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.manual_seed(0)
    model = functionalize(Net().double()).across(shard)
    if shard.size > 1:
        model = sharded(model, init_device_mesh("cpu", (shard.size,)))
    optim = optimizer(name, 0.1, weight_decay=1e-3, clip_norm=1.0)
    update = make_update(training_objective(model, compose), optim, decay=0.9, across=shard)
    state = initial_state(model, optim, averaged=True)
    for step in range(STEPS):
        state, metrics = update(state, shard.rows(batch_of(step)))
    kept = sum(p.to_local().numel() if is_spread(p) else p.numel() for p in state.params.values())
    psi = fr.psi(fr.logit(model.predict), fr.unconstrained(), targeted=True, steps=2, step_size=0.5)
    batch = batch_of(0)
    with torch.no_grad():
        moved = psi(whole(state.params), batch.x, batch.y)
    return whole((state.params, state.average, metrics, moved)), kept


def derivatives(shard):
    """Of a mean over the batch: value, gradient, gradient of a gradient's norm, and under vmap."""
    draw = torch.Generator().manual_seed(3)
    x = shard.rows(torch.randn(6, 4, dtype=torch.float64, generator=draw))
    w = torch.randn(4, dtype=torch.float64, generator=draw)

    def net(w, x):
        h = (x * w).tanh()
        h = h - shard.mean(h.mean(0))
        return (h / (shard.mean(h.square().mean(0)) + 0.1).sqrt()).sum(1)

    def penalised(w):
        slopes = torch.func.grad(lambda x: net(w, x).sin().sum())(x)
        return (net(w, x).square() + slopes.norm(dim=1)).mean()

    found = {
        "value": penalised(w), "gradient": torch.func.grad(penalised)(w),
        "mapped": torch.func.vmap(torch.func.grad(penalised))(torch.stack([w, 2 * w])),
    }  # fmt: skip
    return {name: shard.mean(value) for name, value in found.items()}


def compiled(shard):
    """The gradient through a shared mean, eager and compiled into one graph."""

    def loss(w):
        return (w - shard.mean(w * (shard.rank + 1)).sin()).square().sum()

    w = torch.arange(1.0, 4.0, dtype=torch.float64)
    gradient = torch.func.grad(loss)
    return gradient(w), torch.compile(gradient, fullgraph=True, backend="aot_eager")(w)


def everything(shard):
    """All of it, in one start of the processes."""
    return {
        "trained 1": trained(shard, 1), "trained 2": trained(shard, 2),
        "spread sgd": spread(shard, "sgd"), "spread adamw": spread(shard, "adamw"),
        "spread muon": spread(shard, "muon"),
        "derivatives": derivatives(shard), "compiled": compiled(shard),
    }  # fmt: skip


def told(shard):
    """What `running.processes` carries between two."""
    here = Processes(shard)
    whole = [
        torch.arange(7), torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(5) % 2 == 0, torch.arange(1.0),
    ]  # fmt: skip
    return {
        "first": here.first, "same": here.same(f"of {shard.rank}"),
        "any": (here.any(shard.rank == 1), here.any(False)),
        "rows": [(here.together(here.own(rows), len(rows)), rows) for rows in whole],
    }  # fmt: skip
