"""Updates and schedules against torch.optim and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchopt
from compositions import dense, drift_and_anchor, fast_cure
from problems import largest_difference, make_problem
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

import funcrobust as fr
from funcrobust.core.shards import Shard
from funcrobust.core.training.updates import warmed_up


def objective_of(problem):
    def objective(params, buffers, x, y):
        logits, buffers = problem.model.predict_train(params, buffers, x)
        return F.cross_entropy(logits, y), (buffers, {})

    return objective


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("plain", {"momentum": 0.0}, {}),
        (
            "momentum",
            {"momentum": 0.9, "weight_decay": 5e-3},
            {"momentum": 0.9, "weight_decay": 5e-3},
        ),
        (
            "nesterov",
            {"momentum": 0.9, "weight_decay": 5e-3, "nesterov": True},
            {"momentum": 0.9, "weight_decay": 5e-3, "nesterov": True},
        ),
    ],
)
def test_sgd_is_torch_optims_over_20_steps(name, ours, theirs):
    """Parameters and batch-norm buffers, with a schedule, against the imperative original."""
    problem = make_problem()
    rate = fr.schedule("cyclic", lr_max=0.1, total_steps=20)
    update = fr.make_update(objective_of(problem), fr.optimizer("SGD", rate, **ours))
    state = fr.initial_state(problem.model, fr.optimizer("SGD", rate, **ours))
    module = make_problem().module.train()
    reference = torch.optim.SGD(module.parameters(), lr=0.1, **theirs)
    for step in range(20):
        state, _ = update(state, problem.x, problem.y)
        reference.param_groups[0]["lr"] = float(rate(step))
        reference.zero_grad()
        F.cross_entropy(module(problem.x), problem.y).backward()
        reference.step()
    assert int(state.step) == 20
    assert largest_difference(state.params, dict(module.named_parameters())) <= 1e-10
    assert largest_difference(state.buffers, dict(module.named_buffers())) <= 1e-10


ADAM = 1e-5
"""Of a change of 0.2: torchopt works 1 − βᵗ out in float32, where 1 − 0.999 is off by 6e-5 of
itself, and the first steps of 0.01 each by half of that. The decay moves parameters by 4e-3."""


def test_a_state_of_parameters_alone(problem):
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(fr.objective(fr.cross_entropy(problem.model.predict)), optim, decay=0.9)
    of_both = [
        update(fr.initial_state(each, optim, averaged=True), problem.x, problem.y)[0]
        for each in (problem.params, problem.model)
    ]
    assert of_both[0].buffers == {}
    assert largest_difference(of_both[0].params, of_both[1].params) == 0
    assert set(of_both[0].average) == set(problem.params)


def follow(problem, optim, reference_of, steps=20, tolerance=1e-10):
    """Train by ``optim`` and by torch.optim, ``reference_of(module)``, and compare."""
    update = fr.make_update(objective_of(problem), optim)
    state = fr.initial_state(problem.model, optim)
    module = make_problem().module.train()
    reference = reference_of(module)
    for _ in range(steps):
        state, _ = update(state, problem.x, problem.y)
        reference.zero_grad()
        F.cross_entropy(module(problem.x), problem.y).backward()
        reference.step()
    assert largest_difference(state.params, problem.params) > 100 * tolerance
    assert largest_difference(state.params, dict(module.named_parameters())) <= tolerance


def groups(module, decay):
    """torch.optim's way to say which parameters decay: weights of layers, in a group of theirs."""
    layers = [module.net[0].weight, module.net[5].weight]
    others = [p for p in module.parameters() if not any(p is w for w in layers)]
    assert len(others) == 4, "two biases, and the batch norm's scale and shift"
    return [{"params": layers, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_and_adamw_are_torch_optims(name, decay):
    optim = fr.optimizer(name.lower(), 0.01, weight_decay=decay)
    reference = getattr(torch.optim, name)
    follow(
        make_problem(), optim, lambda m: reference(m.parameters(), lr=0.01, weight_decay=decay),
        tolerance=ADAM,
    )  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_decays_matrices_alone(nesterov):
    optim = fr.optimizer(
        "sgd", 0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.1, decayed=fr.matrices
    )
    follow(
        make_problem(), optim,
        lambda m: torch.optim.SGD(groups(m, 0.1), lr=0.1, momentum=0.9, nesterov=nesterov),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_and_adamw_decay_matrices_alone(name):
    optim = fr.optimizer(name, 0.01, weight_decay=0.1, decayed=fr.matrices)
    reference = getattr(torch.optim, name)
    follow(make_problem(), optim, lambda m: reference(groups(m, 0.1), lr=0.01), tolerance=ADAM)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_a_mask_may_go_by_names(name):
    """And what it leaves out decays by nothing: with zero gradients nothing else moves."""
    problem = make_problem()
    optim = fr.optimizer(
        name, 0.1, momentum=0.0, weight_decay=0.5,
        decayed=lambda params: {k: k == "net.5.weight" for k in params},
    )  # fmt: skip
    update = fr.make_update(fr.objective(lambda p, x, y: 0.0 * problem.loss(p, x, y)), optim)
    before = fr.initial_state(problem.model, optim)
    after, _ = update(before, problem.x, problem.y)
    moved = {k for k, p in after.params.items() if not torch.equal(p, before.params[k])}
    assert moved == {"net.5.weight"}


def test_matrices():
    assert fr.matrices(make_problem().params) == {
        "net.0.weight": True, "net.0.bias": False, "net.1.weight": False, "net.1.bias": False,
        "net.5.weight": True, "net.5.bias": False,
    }  # fmt: skip


CHAINS = {
    "rmsprop": (lambda _: torchopt.rmsprop(0.01), lambda m: torch.optim.RMSprop(m.parameters())),
    "a scale after momentum": (
        lambda _: torchopt.chain(torchopt.sgd(0.2, momentum=0.9), torchopt.transform.scale(0.5)),
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    ),
    "a decay of named parameters": (  # a tree of booleans, which fits these parameters alone
        lambda params: torchopt.chain(
            torchopt.transform.masked(
                torchopt.transform.add_decayed_weights(0.1), fr.matrices(params)
            ),
            torchopt.sgd(0.1, momentum=0.9),
        ),
        lambda m: torch.optim.SGD(groups(m, 0.1), lr=0.1, momentum=0.9),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_any_of_torchopts_optimizers_will_do(name):
    problem = make_problem()
    ours, theirs = CHAINS[name]
    # RMSprop divides by the size of a gradient that is nothing but rounding: that of a bias
    # before batch norm.
    follow(problem, ours(problem.params), theirs, tolerance=1e-6)


def test_update_is_pure():
    problem = make_problem()
    optim = fr.optimizer("SGD", 0.1)
    update, state = (
        fr.make_update(objective_of(problem), optim),
        fr.initial_state(problem.model, optim),
    )
    before = {k: v.clone() for k, v in {**state.params, **state.buffers}.items()}
    first, _ = update(state, problem.x, problem.y)
    second, _ = update(state, problem.x, problem.y)
    assert all(torch.equal(before[k], v) for k, v in {**state.params, **state.buffers}.items())
    assert largest_difference(first.params, second.params) == 0
    assert int(state.step) == 0


MOMENTA = {
    "ours": lambda: fr.optimizer("SGD", 0.1, momentum=0.9, nesterov=True),
    "a chain": lambda: torchopt.chain(
        torchopt.clip.clip_grad_norm(0.5), torchopt.sgd(0.1, momentum=0.9)
    ),
    "masked by names": lambda: CHAINS["a decay of named parameters"][0](make_problem().params),
}


@pytest.mark.parametrize("name", MOMENTA)
def test_a_new_optimizer_continues_from_an_old_state(name):
    """torchopt's momentum skips its decay on the first call ever: not after ours has spent it."""
    problem, make = make_problem(), MOMENTA[name]

    def run(state, steps):
        optim = make()
        update = fr.make_update(objective_of(problem), optim)
        first = fr.initial_state(problem.model, optim)  # also what a state is read into
        state = state or first
        for _ in range(steps):
            state, _ = update(state, problem.x, problem.y)
        return state

    assert largest_difference(run(None, 6).params, run(run(None, 3), 3).params) == 0


def test_clipping_bounds_the_step():
    problem = make_problem()
    optim = fr.optimizer("SGD", 1.0, momentum=0.0, clip_norm=0.01)
    update, state = (
        fr.make_update(objective_of(problem), optim),
        fr.initial_state(problem.model, optim),
    )
    after, metrics = update(state, problem.x, problem.y)
    assert metrics["gradient_norm"] > 0.01
    moved = {k: after.params[k] - p for k, p in state.params.items()}
    assert abs(math.sqrt(sum(float(d.square().sum()) for d in moved.values())) - 0.01) < 1e-5


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_clipping_is_torchopts(limit):
    """To the last bits; but it compiles, and maps over an ensemble whose members differ."""
    problem = make_problem()
    plain = {"momentum": 0.0, "nesterov": False}
    theirs = torchopt.chain(torchopt.clip.clip_grad_norm(limit), torchopt.sgd(1.0))
    ours = fr.optimizer("SGD", 1.0, clip_norm=limit, **plain)
    updates = [fr.make_update(objective_of(problem), optim) for optim in (ours, theirs)]
    states = [fr.initial_state(problem.model, optim) for optim in (ours, theirs)]
    here, there = (u(s, problem.x, problem.y)[0] for u, s in zip(updates, states, strict=True))
    assert largest_difference(here.params, there.params) <= 1e-15
    compiled = torch.compile(updates[0], fullgraph=True, backend="aot_eager")
    found, _ = compiled(states[0], problem.x, problem.y)
    assert largest_difference(found.params, here.params) <= 1e-12
    two = tree_map(lambda t: torch.stack([t, t.clone()]), states[0])
    x = torch.stack([problem.x, 0.5 * problem.x])
    both, _ = torch.func.vmap(updates[0], in_dims=(0, 0, None))(two, x, problem.y)
    alone, _ = updates[0](states[0], 0.5 * problem.x, problem.y)
    assert largest_difference({k: p[1] for k, p in both.params.items()}, alone.params) <= 1e-12


@pytest.fixture
def features():
    """A network without batch norm, six rows of features, and the cross-entropy."""
    model = dense(7, 5, 3)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 7, generator=draw, dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 2, 2, 1, 0]), fr.cross_entropy(model.predict)


def test_a_composed_loss_trains_in_one_line(features):
    """What it does is what torch.optim does with the same scalar; a schedule and an average too."""
    model, x, y, loss = features
    rate = fr.schedule("cosine", lr_max=0.5, total_steps=30)
    optim = fr.optimizer("sgd", rate)
    total = fr.weighted_sum((1.0, loss), (0.1, fr.input_gradient_norm(loss)))
    update = fr.make_update(fr.objective(total), optim, decay=0.9)
    state = fr.initial_state(model, optim, averaged=True)
    module = model.module()
    reference = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for step in range(30):
        state, metrics = update(state, x, y)
        reference.param_groups[0]["lr"] = float(rate(step))
        reference.zero_grad()
        point = x.clone().requires_grad_()
        values = F.cross_entropy(module(point), y, reduction="none")
        slope = torch.autograd.grad(values.sum(), point, create_graph=True)[0]
        scalar = (values + 0.1 * slope.square().sum(1)).mean()
        scalar.backward()
        reference.step()
        assert abs(metrics["loss"] - scalar) <= 1e-10
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert largest_difference(state.params, dict(module.named_parameters())) <= 1e-10
    assert set(metrics) == {"loss", "gradient_norm"}
    assert state.buffers == {}
    assert largest_difference(fr.averaged(state)[0], state.params) > 1e-3


def test_the_lift_keeps_the_buffers():
    """In evaluation mode they are constants, and come out as they went in."""
    problem = make_problem()
    optim = fr.optimizer("sgd", 0.1)
    update = fr.make_update(fr.objective(problem.loss), optim)
    state, _ = update(fr.initial_state(problem.model, optim), problem.x, problem.y)
    assert largest_difference(state.buffers, problem.model.buffers) == 0
    assert largest_difference(state.params, problem.params) > 1e-4


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_of_a_batch_make_its_gradient(features, parts):
    """Of a loss that takes each example for itself; the metrics are those of the whole too."""
    model, x, y, loss = features
    attack = fr.pgd(loss, fr.linf(0.1, bounds=None), step_size=0.05, steps=2)
    total = fr.weighted_sum((1.0, fr.adversarial(loss, attack)), (0.5, fr.cure(loss, 0.3)))
    optim = fr.optimizer("sgd", 0.3)
    (whole, expected), (pieces, metrics) = (
        fr.make_update(fr.objective(total), optim, accumulate=k)(
            fr.initial_state(model, optim), x, y
        )
        for k in (1, parts)
    )
    assert largest_difference(whole.params, model.params) > 1e-3
    assert largest_difference(whole.params, pieces.params) <= 1e-12
    for name, value in expected.items():
        assert abs(value - metrics[name]) <= 1e-12
    assert int(pieces.step) == 1


def test_a_batch_is_cut_by_its_rows(features):
    """None stays None, a 0-dim tensor stays whole, and every part meets its own rows."""
    model, x, y, loss = features
    seen = []

    def compose(modes, batch):
        seen.append(batch)
        return {"loss": (1.0, fr.cross_entropy(modes.training))}

    optim = fr.optimizer("sgd", 0.1)
    update = fr.make_update(fr.training_objective(model, compose), optim, accumulate=3)
    growth = torch.tensor(0.5)
    batch = fr.Batch(x, y, start=x + 1, mix=torch.arange(6), growth=growth)
    update(fr.initial_state(model, optim), batch)
    assert len(seen) == 3
    for i, part in enumerate(seen):
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(part.x, x[rows])
        assert torch.equal(part.y, y[rows])
        assert torch.equal(part.start, x[rows] + 1)
        assert part.mix.tolist() == [2 * i, 2 * i + 1]
        assert part.points is None
        assert torch.equal(part.growth, growth)
    with pytest.raises(fr.FuncrobustError, match="no 4 equal parts"):
        fr.make_update(fr.training_objective(model, compose), optim, accumulate=4)(
            fr.initial_state(model, optim), batch
        )
    with pytest.raises(fr.FuncrobustError, match="accumulate"):
        fr.make_update(fr.objective(loss), optim, accumulate=0)


def restoring(model):
    """The cross-entropy; and, of the images that are to be restored, what hangs on their labels."""

    def compose(modes, batch):
        loss, (images, degraded) = fr.cross_entropy(modes.training), batch.restored

        def term(params, x, y):
            return loss(params, x, y) * (x - degraded).square().sum(1)

        return {
            "loss": (1.0, loss),
            "restoration": (0.5, fr.at(term, images, batch.y[: len(images)])),
        }

    return fr.training_objective(model, compose)


@pytest.mark.parametrize("few", [4, 8])
@pytest.mark.parametrize("parts", [2, 4])
def test_what_goes_with_the_first_rows_is_cut_beside_them(parts, few):
    """Of images restored, fewer than the batch, each part has a share, with their labels."""
    model, draw = dense(7, 5, 3), torch.Generator().manual_seed(0)
    x, images, degraded = torch.randn(3, 8, 7, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
    batch = fr.Batch(x, labels, restored=(images[:few], degraded[:few]))
    optim = fr.optimizer("sgd", 0.3)
    (whole, expected), (pieces, metrics) = (
        fr.make_update(restoring(model), optim, accumulate=k)(fr.initial_state(model, optim), batch)
        for k in (1, parts)
    )
    assert largest_difference(whole.params, model.params) > 1e-3
    assert largest_difference(whole.params, pieces.params) <= 1e-12
    for name in ("loss", "restoration", "gradient_norm"):
        assert abs(metrics[name] - expected[name]) <= 1e-12


def test_what_processes_take_of_their_rows_makes_up_the_part_of_all(features):
    """So that batch norm over them sees what one process alone would, part by part."""
    model, _, _, _ = features
    rows = torch.arange(16.0).double()
    x, y = rows[:, None].expand(16, 7), torch.zeros(16, dtype=torch.int64)
    batch = fr.Batch(x, y, restored=(x[:8], x[:8]))
    optim = fr.optimizer("sgd", 0.1)

    def parts(batch):
        seen = []

        def compose(modes, batch):
            seen.append(batch)
            return {"loss": (1.0, fr.cross_entropy(modes.training))}

        update = fr.make_update(fr.training_objective(model, compose), optim, accumulate=2)
        update(fr.initial_state(model, optim), batch)
        return [(p.x[:, 0].tolist(), p.restored[0][:, 0].tolist()) for p in seen]

    alone = parts(batch)
    assert alone == [([*range(4), *range(8, 12)], [*range(4)]),
                     ([*range(4, 8), *range(12, 16)], [*range(4, 8)])]  # fmt: skip
    shared = [parts(Shard(rank, 2, "g").rows(batch)) for rank in range(2)]
    for part, first, second in zip(alone, *shared, strict=True):
        for all_of_them, a, b in zip(part, first, second, strict=True):
            assert sorted(a + b) == all_of_them


@pytest.mark.parametrize(("few", "said"), [(3, "3 and 8 examples"), (2, "2 and 8 examples")])
def test_rows_that_cannot_be_cut(features, few, said):
    model, _, _, loss = features
    x, y = torch.zeros(8, 7).double(), torch.zeros(8, dtype=torch.int64)
    optim = fr.optimizer("sgd", 0.1)
    update = fr.make_update(restoring(model), optim, accumulate=4)
    with pytest.raises(fr.FuncrobustError, match=f"no 4 equal parts .* of {said}"):
        update(fr.initial_state(model, optim), fr.Batch(x, y, restored=(x[:few], x[:few])))
    with pytest.raises(fr.FuncrobustError, match=r"no 2 equal parts .* of no examples"):
        fr.make_update(fr.objective(loss), optim, accumulate=2)(fr.initial_state(model, optim))


def test_batch_norm_sees_a_part_at_a_time():
    """Its buffers move once a part, in turn; the gradients are each part's own."""
    problem = make_problem()
    optim = fr.optimizer("sgd", 0.1, momentum=0.0)
    update = fr.make_update(objective_of(problem), optim, accumulate=2)
    state, _ = update(fr.initial_state(problem.model, optim), problem.x, problem.y)
    module = problem.model.module().train()
    for rows in (slice(2), slice(2, 4)):
        (F.cross_entropy(module(problem.x[rows]), problem.y[rows]) / 2).backward()
    expected = {k: (p - 0.1 * p.grad).detach() for k, p in module.named_parameters()}
    assert largest_difference(state.params, expected) <= 1e-12
    assert largest_difference(state.buffers, dict(module.named_buffers())) <= 1e-12
    assert int(state.buffers["net.1.num_batches_tracked"]) == 2


N = 100
CLOSED_FORMS = {
    "piecewise": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
    "linear": lambda t: (
        1.0 if t <= 1 / 3 else 1 - 0.9 * (3 * t - 1) if t <= 2 / 3 else 0.1 - 0.09 * (3 * t - 2)
    ),
    "cyclic": lambda t: 2 * t if t < 0.5 else 2 - 2 * t,
    "superconverge": lambda t: t / 0.4 if t < 0.4 else (1 - t) / 0.6,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "onedrop": lambda t: 1.0 if t < 0.5 else 0.1,
    "multipledecay": lambda t: 1 - (round(t * N) // (N // 10)) / 10,
    "constant": lambda t: 1.0,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedules(name):
    rate = fr.schedule(name, lr_max=0.2, total_steps=N)
    for step in range(N + 1):
        expected = 0.2 * CLOSED_FORMS[name](step / N)
        assert abs(float(rate(step)) - expected) < 1e-12
        assert abs(float(rate(torch.tensor(step))) - expected) < 1e-12


def test_lr_min_is_a_floor_and_cyclics_base():
    assert (
        min(
            float(fr.schedule("cosine", lr_max=0.2, lr_min=0.05, total_steps=N)(s))
            for s in range(N + 1)
        )
        == 0.05
    )
    cyclic = fr.schedule("cyclic", lr_max=0.2, lr_min=0.05, total_steps=N)
    assert float(cyclic(0)) == pytest.approx(0.05)
    assert float(cyclic(50)) == pytest.approx(0.2)
    assert float(cyclic(25)) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "cosin"}, r"unknown schedule .*did you mean 'cosine'.*choose from piecewise"),
        ({"lr_max": -1.0}, "lr_max"),
        ({"lr_min": 0.3}, "must not exceed"), ({"total_steps": 0}, "total_steps"),
    ],
)  # fmt: skip
def test_bad_schedules(kwargs, message):
    options = {"name": "cosine", "lr_max": 0.1, "total_steps": 10} | kwargs
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.schedule(options.pop("name"), **options)


def test_unknown_optimizer():
    with pytest.raises(fr.FuncrobustError, match="SGD, Adam, AdamW or Muon"):
        fr.optimizer("rprop", 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"momentum": -0.1}, "momentum"), ({"weight_decay": math.nan}, "weight_decay"),
     ({"clip_norm": -1.0}, "clip_norm")],
)  # fmt: skip
def test_bad_numbers(options, message):
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.optimizer("sgd", 0.1, **options)


def test_the_update_traces_into_one_graph():
    """fullgraph tracing on the CPU stands in for what CUDA compiles."""
    problem = make_problem(torch.float32)
    ball = fr.linf(8 / 255)
    objective = fr.training_objective(problem.model, fast_cure(ball, lam=0.5, h=1.0))
    optim = fr.optimizer(
        "SGD", fr.schedule("cyclic", lr_max=0.1, total_steps=10), weight_decay=5e-4
    )
    update, state = fr.make_update(objective, optim), fr.initial_state(problem.model, optim)
    state, _ = update(state, *batch_of(problem))  # the rate is 0 before the first
    eager, _ = update(state, *batch_of(problem))
    torch.compiler.reset()  # torch 2.15's guards trip over two optimizers of unlike states
    compiled = torch.compile(update, fullgraph=True, backend="eager")
    traced, _ = compiled(state, *batch_of(problem))
    assert largest_difference(eager.params, state.params) > 1e-4
    assert largest_difference(eager.params, traced.params) <= 1e-6


def batch_of(problem):
    start = fr.linf(8 / 255).sample(problem.x, fr.generator(0, "start"))
    return (fr.Batch(problem.x, problem.y, start),)


def psi_objective(problem):
    return fr.training_objective(problem.model, drift_and_anchor(1.0))


def test_the_psi_update_traces_into_one_graph():
    """Compiled, ψ is the unrolled iteration: the same numbers."""
    problem = make_problem(torch.float32)
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(psi_objective(problem), optim)
    state, batch = fr.initial_state(problem.model, optim), fr.Batch(problem.x, problem.y)
    eager, _ = update(state, batch)
    torch.compiler.reset()  # torch 2.15's guards trip over two optimizers of unlike states
    compiled = torch.compile(update, fullgraph=True, backend="eager")
    traced, _ = compiled(state, batch)
    assert largest_difference(eager.params, state.params) > 1e-4
    assert largest_difference(eager.params, traced.params) <= 1e-6


def test_an_ensemble_of_psi_updates_by_vmap():
    """The adjoint inside grad inside vmap: two networks at once equal one after the other."""
    problem = make_problem()
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(psi_objective(problem), optim)

    def after(params):
        state = fr.State(params, problem.model.buffers, optim.init(params), torch.tensor(0))
        return update(state, fr.Batch(problem.x, problem.y))[0].params

    both = [problem.params, {k: 1.1 * p for k, p in problem.params.items()}]
    stacked = {k: torch.stack([p[k] for p in both]) for k in problem.params}
    mapped = torch.func.vmap(after)(stacked)
    for i, params in enumerate(both):
        assert largest_difference({k: p[i] for k, p in mapped.items()}, after(params)) <= 1e-10


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, generator=generator).double() for name in ("w", "b")}


def test_ema_is_torchs_averaged_model():
    """From the first model on, which torch copies."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(tensors(0)["w"]), nn.Parameter(tensors(0)["b"])

    module = Pair()
    reference = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(module)
    average, decay = tensors(0), torch.tensor(0.9, dtype=torch.float64)
    for seed in range(1, 8):
        new = tensors(seed)
        module.load_state_dict(new)
        reference.update_parameters(module)
        average = fr.ema(average, new | {"more": new["w"]}, decay)
    expected = dict(reference.module.named_parameters())
    assert set(average) == {"w", "b"}
    assert largest_difference(average, expected) <= 1e-12


def test_warmed_up():
    decay = [float(warmed_up(0.9, torch.tensor(t))) for t in range(200)]
    assert decay == [min(0.9, (1 + t) / (10 + t)) for t in range(200)]
    assert decay[0] == 0.1
    assert decay[-1] == 0.9


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_an_update_keeps_the_average_of_what_it_leaves(decay):
    """Parameters and batch-norm statistics; a loop over the states is the reference."""
    problem = make_problem()
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(objective_of(problem), optim, decay=decay)
    plain = fr.make_update(objective_of(problem), optim)
    state = fr.initial_state(problem.model, optim, averaged=True)
    unaveraged = fr.initial_state(problem.model, optim)
    names = [*problem.params, "net.1.running_mean", "net.1.running_var"]
    assert sorted(state.average) == sorted(names)
    last = problem.params | problem.model.buffers
    expected = {name: last[name] for name in names}
    for t in range(8):
        state, _ = update(state, problem.x, problem.y)
        unaveraged, _ = plain(unaveraged, problem.x, problem.y)
        last = unaveraged.params | unaveraged.buffers
        d = min(decay, (1 + t) / (10 + t))
        expected = {name: d * a + (1 - d) * last[name] for name, a in expected.items()}
    assert largest_difference(state.average, expected) <= 1e-12
    assert largest_difference(state.params, unaveraged.params) == 0, "the average trains nothing"
    assert unaveraged.average == {}
    params, buffers = fr.averaged(state)
    assert largest_difference(params, {k: expected[k] for k in problem.params}) <= 1e-12
    assert (params.keys(), buffers.keys()) == (state.params.keys(), state.buffers.keys())
    assert torch.equal(buffers["net.1.running_var"], state.average["net.1.running_var"])
    assert int(buffers["net.1.num_batches_tracked"]) == 8
    found = fr.averaged(unaveraged)
    assert found == (unaveraged.params, unaveraged.buffers)


def test_the_average_keeps_its_precision():
    """The decay is float64, what it averages stays float32."""
    problem = make_problem(torch.float32)
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(objective_of(problem), optim, decay=0.99)
    state, _ = update(fr.initial_state(problem.model, optim, averaged=True), problem.x, problem.y)
    assert {a.dtype for a in state.average.values()} == {torch.float32}


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, math.nan])
def test_bad_decay(decay):
    with pytest.raises(fr.FuncrobustError, match="decay"):
        fr.make_update(lambda: None, fr.optimizer("SGD", 0.1), decay=decay)


def test_a_decay_needs_an_average_to_go_on_with():
    problem = make_problem()
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(objective_of(problem), optim, decay=0.9)
    with pytest.raises(fr.FuncrobustError, match="averaged=True"):
        update(fr.initial_state(problem.model, optim), problem.x, problem.y)


def test_an_average_takes_both_halves(problem):
    objective, optim = fr.objective(problem.loss), fr.optimizer("sgd", 0.1)
    for decay, averaged in ((0.9, False), (None, True)):
        update = fr.make_update(objective, optim, decay=decay)
        state = fr.initial_state(problem.model, optim, averaged=averaged)
        with pytest.raises(fr.FuncrobustError, match="takes both"):
            update(state, problem.x, problem.y)


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(fr.FuncrobustError, match="rate"):
        fr.optimizer("sgd", rate)
