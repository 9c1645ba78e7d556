"""Updates and schedules against torch.optim and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from problems import largest_difference, make_problem
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import funcrobust as fr
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


def test_adam_is_torch_optims():
    problem = make_problem()
    optim = fr.optimizer("Adam", 0.01)
    update, state = (
        fr.make_update(objective_of(problem), optim),
        fr.initial_state(problem.model, optim),
    )
    module = make_problem().module.train()
    reference = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(20):
        state, _ = update(state, problem.x, problem.y)
        reference.zero_grad()
        F.cross_entropy(module(problem.x), problem.y).backward()
        reference.step()
    assert largest_difference(state.params, dict(module.named_parameters())) <= 1e-6


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


def test_a_new_optimizer_continues_from_an_old_state():
    """torchopt's momentum skips its decay on the first call ever: not after ours has spent it."""
    problem = make_problem()

    def run(state, steps):
        optim = fr.optimizer("SGD", 0.1, momentum=0.9, nesterov=True)
        update = fr.make_update(objective_of(problem), optim)
        state = state or fr.initial_state(problem.model, optim)
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
        ({"name": "zigzag"}, "unknown schedule"), ({"lr_max": -1.0}, "lr_max"),
        ({"lr_min": 0.3}, "must not exceed"), ({"total_steps": 0}, "total_steps"),
    ],
)  # fmt: skip
def test_bad_schedules(kwargs, message):
    options = {"name": "cosine", "lr_max": 0.1, "total_steps": 10} | kwargs
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.schedule(options.pop("name"), **options)


def test_unknown_optimizer():
    with pytest.raises(fr.FuncrobustError, match="SGD or Adam"):
        fr.optimizer("rprop", 0.1)


def test_the_update_traces_into_one_graph():
    """fullgraph tracing on the CPU stands in for what CUDA compiles."""
    problem = make_problem(torch.float32)
    ball = fr.linf(8 / 255)
    objective = fr.cure_training(
        problem.model, lambda loss: fr.fgsm(loss, ball, step_size=10 / 255), lam=0.5, h=1.0
    )
    optim = fr.optimizer(
        "SGD", fr.schedule("cyclic", lr_max=0.1, total_steps=10), weight_decay=5e-4
    )
    update, state = fr.make_update(objective, optim), fr.initial_state(problem.model, optim)
    start = ball.sample(problem.x, fr.generator(0, "start"))
    eager, _ = update(state, problem.x, problem.y, start)
    torch.compiler.reset()  # torch 2.15's guards trip over two optimizers of unlike states
    compiled = torch.compile(update, fullgraph=True, backend="eager")
    traced, _ = compiled(state, problem.x, problem.y, start)
    assert largest_difference(eager.params, traced.params) <= 1e-6


def psi_objective(problem):
    def psi_of(predict):
        loss = fr.cross_entropy(predict)
        return fr.psi(loss, fr.unconstrained(), step_size=2.0, steps=3, targeted=True)

    return fr.psi_training(problem.model, psi_of, weight=1.0)


def test_the_psi_update_traces_into_one_graph():
    """Compiled, ψ is the unrolled iteration: the same numbers."""
    problem = make_problem(torch.float32)
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(psi_objective(problem), optim)
    state = fr.initial_state(problem.model, optim)
    eager, _ = update(state, problem.x, problem.y, problem.y)
    torch.compiler.reset()  # torch 2.15's guards trip over two optimizers of unlike states
    compiled = torch.compile(update, fullgraph=True, backend="eager")
    traced, _ = compiled(state, problem.x, problem.y, problem.y)
    assert largest_difference(eager.params, state.params) > 1e-4
    assert largest_difference(eager.params, traced.params) <= 1e-6


def test_an_ensemble_of_psi_updates_by_vmap():
    """The adjoint inside grad inside vmap: two networks at once equal one after the other."""
    problem = make_problem()
    optim = fr.optimizer("SGD", 0.1)
    update = fr.make_update(psi_objective(problem), optim)

    def after(params):
        state = fr.State(params, problem.model.buffers, optim.init(params), torch.tensor(0))
        return update(state, problem.x, problem.y, problem.y)[0].params

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
