"""A compiled update is checked against float64 before it is trusted; every method compiles."""

from __future__ import annotations

import math

import pytest
import torch
from compositions import fast_cure
from problems import largest_difference, make_problem

import funcrobust as fr
from funcrobust.core.training import compiling
from funcrobust.core.training.compiling import in_float64, relative_errors

BALL = fr.linf(8 / 255)
BF16 = torch.bfloat16
DECAY = 0.1


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """torch 2.15's guards trip over two optimizers of unlike states in one process."""
    torch.compiler.reset()


def make_case(dtype=None, rate=0.1):
    """An update of fast CURE training, a state, and a batch."""
    problem = make_problem(torch.float32)
    objective = fr.training_objective(problem.model, fast_cure(BALL, lam=0.5, h=1.0), dtype=dtype)
    optim = fr.optimizer("SGD", rate, weight_decay=DECAY)
    update = fr.make_update(objective, optim, decay=0.9)
    start = BALL.sample(problem.x, fr.generator(0, "start"))
    batch = (fr.Batch(problem.x, problem.y, start),)
    return update, fr.initial_state(problem.model, optim, averaged=True), batch


@pytest.mark.parametrize("dtype", [None, BF16])
def test_a_right_compilation_is_returned(dtype):
    """Through autograd's own tracing; what comes back is the compiled update."""
    update, state, batch = make_case(dtype)
    compiled = fr.compile_checked(update, state, *batch, backend="aot_eager")
    found, _ = compiled(state, *batch)
    eager, _ = update(state, *batch)
    off = largest_difference(found.params, eager.params)
    # Of a change of 1e-3 to 1e-1: float32 keeps parameters to 1e-7, bfloat16's gradients to 1%.
    assert off <= (1e-5 if dtype is None else 0.02) * 0.1
    assert largest_difference(found.params, state.params) > 1e-3


def wrong(graph, _):
    """A planted miscompilation: the weight decay is added twice over."""
    planted = 0
    for node in graph.graph.nodes:
        if node.kwargs.get("alpha") == DECAY:
            node.kwargs = {**node.kwargs, "alpha": 2 * DECAY}
            planted += 1
    assert planted == 6, "once for each parameter"
    graph.recompile()
    return graph.forward


# The schedule starts at 0: its first update moves no parameter, and is checked all the same.
CYCLIC = fr.schedule("cyclic", lr_max=0.1, total_steps=10)


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("rate", [0.1, CYCLIC])
def test_a_miscompilation_is_refused(dtype, rate):
    update, state, batch = make_case(dtype, rate)
    with pytest.raises(fr.FuncrobustError, match="--no-compile"):
        fr.compile_checked(update, state, *batch, backend=wrong)


def make_nan(graph, _):
    def run(*arguments):
        found = graph.forward(*arguments)
        return [t * math.nan if t.is_floating_point() else t for t in found]

    return run


def test_nan_is_refused():
    update, state, batch = make_case()
    with pytest.raises(fr.FuncrobustError, match="off by nan"):
        fr.compile_checked(update, state, *batch, backend=make_nan)


def test_the_compiled_update_may_err_as_the_eager_one_does(monkeypatch):
    """Three times as far from float64, and a tolerance; no farther. Judged on a stand-in."""
    monkeypatch.setattr(torch, "compile", lambda update, **_: compiled)

    def state(value):
        return fr.State({"w": torch.tensor([value])}, {}, None, torch.tensor(0))

    def eager(before, x):  # off by 0.01 of its change of 1, but in float64
        return state(1.0 if x.dtype == torch.float64 else 1.01), {}

    for off, right in ((-0.034, True), (0.034, True), (0.037, False), (-0.037, False)):
        compiled = lambda before, x, off=off: (state(1.0 + off), {})  # noqa: E731
        arguments = (eager, state(0.0), torch.zeros(1))
        if right:
            assert fr.compile_checked(*arguments) is compiled
        else:
            with pytest.raises(fr.FuncrobustError, match=r"off by 0.037 of .*\['w'\]"):
                fr.compile_checked(*arguments)


def test_autocast_leaves_float64_alone():
    """So one update, whatever its dtype, has one truth."""
    (half, state, batch), (full, _, _) = make_case(BF16), make_case()
    exact, halved = (f(in_float64(state), *in_float64(batch))[0] for f in (full, half))
    assert {p.dtype for p in halved.params.values()} == {torch.float64}
    assert largest_difference(exact.params, halved.params) == 0
    assert largest_difference(exact.buffers, halved.buffers) == 0
    found, _ = half(state, *batch)
    assert largest_difference(found.params, exact.params) > 1e-6, "in float32 it is bfloat16"


def test_in_float64_takes_floating_tensors_alone():
    tree = {"a": torch.ones(2), "b": (torch.tensor(3), 1.5, None)}
    found = in_float64(tree)
    assert found["a"].dtype == torch.float64
    assert found["b"][0].dtype == torch.int64
    assert found["b"][1:] == (1.5, None)


def state_of(w, b, momentum):
    params = {"w": torch.tensor(w), "b": torch.tensor(b)}
    return fr.State(params, {"count": torch.tensor(1)}, (torch.tensor(momentum),), torch.tensor(0))


def test_relative_errors():
    before, truth = state_of([1.0, 2.0], [0.0], [0.0]), state_of([4.0, 6.0], [2.0], [0.0])
    found = state_of([4.0, 6.5], [1.9], [0.0])
    expected = {".params['w']": 0.1, ".params['b']": 0.05, ".optimizer_state[0]": 0.0}
    assert relative_errors(before, truth, found) == pytest.approx(expected)
    assert math.isnan(
        relative_errors(before, truth, state_of([1.0, math.nan], [0.0], [0.0]))[".params['w']"]
    )


def test_a_change_of_nothing_but_rounding_is_no_miscompilation():
    """A bias before batch norm: its gradient is 0, or 1e-9, or −3e-9."""
    before, truth = state_of([0.0], [0.5], [0.0]), state_of([1.0], [0.5], [0.0])
    rounded, moved = state_of([1.0], [0.5 + 1e-6], [0.0]), state_of([1.0], [0.51], [0.0])
    assert relative_errors(before, truth, rounded)[".params['b']"] < 2e-3
    assert relative_errors(before, truth, moved)[".params['b']"] > 3 * compiling.TOLERANCE


REGULARISERS = {
    "cure": lambda loss, batch, _: fr.cure(loss, 0.7 * batch.growth),
    "cure_batched": lambda loss, batch, _: fr.cure(loss, 0.7, derivative="batched"),
    "cure_forward": lambda loss, batch, _: fr.cure(loss, 0.7, derivative="forward"),
    "cure_central": lambda loss, batch, _: fr.cure(
        loss, 0.7, along=batch.noise, derivative="central"
    ),
    "cure_one_sided": lambda loss, batch, _: fr.cure(loss, 0.7, derivative="one-sided"),
    "cure_random": lambda loss, batch, _: fr.cure(loss, 0.7, along=batch.noise),
    "gradient_difference": lambda loss, _, x_hat: fr.gradient_difference(loss, toward=x_hat),
    "gradient_alignment": lambda loss, batch, _: fr.gradient_alignment(
        loss, toward=batch.points[:, 0]
    ),
    "gradient_alignment_code": lambda loss, batch, _: fr.gradient_alignment(
        loss, toward=batch.points[:, 0], form="code"
    ),
    "elle": lambda loss, batch, _: fr.elle(
        loss, ends=(batch.points[:, 0], batch.points[:, 1]), mix=batch.mix
    ),
    "local_linearity": lambda loss, batch, _: fr.local_linearity(
        loss, fr.pgd_k(BALL, step_size=0.02, steps=2), start=batch.points[:, 0]
    ),
    "input_gradient_norm": lambda loss, *_: fr.input_gradient_norm(loss),
    "helper": lambda loss, _, x_hat: fr.helper_examples(
        loss, toward=x_hat, labels=lambda x: x[:, :, 0, 0].argmax(1)
    ),
    "clean": lambda loss, *_: loss,
}
ATTACKS = {
    "rs_fgsm": fr.rs_fgsm(BALL), "n_fgsm": fr.n_fgsm(BALL), "zerograd": fr.zerograd(BALL),
    "pgd_k": fr.pgd_k(BALL, step_size=4 / 255, steps=2),
}  # fmt: skip
COMBINED = [
    ("rs_fgsm", ["cure"], "held", {}),
    ("n_fgsm", ["cure_random"], "running", {}),
    ("zerograd", ["elle"], "batch", {}),
    ("pgd_k", ["gradient_alignment", "gradient_alignment_code"], "held", {}),
    ("pgd_k", ["helper", "clean"], "training", {"trades": 6.0}),
    ("rs_fgsm", ["local_linearity"], "held", {}),
    ("rs_fgsm", ["input_gradient_norm"], "training", {}),
    ("rs_fgsm", ["cure_batched", "cure_forward", "cure_central", "cure_one_sided"], "held", {}),
    ("n_fgsm", ["gradient_difference"], "batch", {"seen": "training"}),
    ("zerograd", ["cure"], "batch", {"part": 2, "dtype": BF16}),
]


def composition(attack, names, statistics, seen="running", trades=None, part=4):
    """An attack on one mode, and some regularisers of a part of the batch in another."""

    def compose(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        eyes = fr.cross_entropy(getattr(modes, seen))
        perturb = ATTACKS[attack].perturb(eyes)
        x_hat = perturb(modes.params, batch.start, batch.y, center=batch.x).detach()
        if trades is None:
            fit = fr.adversarial(fr.cross_entropy(modes.training), perturb, start=batch.start)
        else:
            fit = fr.trades(modes.training, ATTACKS[attack], beta=trades, start=batch.start)
        loss, some = fr.cross_entropy(getattr(modes, statistics)), batch.first(part)
        return {"loss": (1.0, fit)} | {
            name: (0.5, fr.at(REGULARISERS[name](loss, some, x_hat[:part]), some.x, some.y))
            for name in names
        }

    return compose


def full_batch(problem, attack):
    draw = fr.generator(0, "noise")
    noise = 2 * torch.rand(3, *problem.x.shape, generator=draw) - 1
    points = (problem.x + 0.03 * noise[:2]).transpose(0, 1)
    return fr.Batch(
        problem.x, problem.y, ATTACKS[attack].start(problem.x, fr.generator(0, "start")),
        points, noise[2], torch.rand(4, generator=draw), torch.tensor(0.5),
    )  # fmt: skip


@pytest.mark.parametrize(("attack", "names", "statistics", "options"), COMBINED)
def test_every_method_traces_into_one_graph(attack, names, statistics, options):
    """Without a break, and the traced update is the eager one."""
    problem = make_problem(torch.float32)
    dtype = options.get("dtype")
    options = {k: v for k, v in options.items() if k != "dtype"}
    compose = composition(attack, names, statistics, **options)
    objective = fr.training_objective(problem.model, compose, dtype=dtype)
    optim = fr.optimizer("SGD", 0.1, weight_decay=5e-4)
    update = fr.make_update(objective, optim, decay=0.9)
    state, batch = (
        fr.initial_state(problem.model, optim, averaged=True),
        full_batch(problem, attack),
    )
    eager, wanted = update(state, batch)
    traced, metrics = torch.compile(update, fullgraph=True, backend="eager")(state, batch)
    assert set(metrics) == set(wanted) >= set(names)
    for found, expected in ((traced.params, eager.params), (traced.average, eager.average)):
        assert largest_difference(found, expected) <= 1e-6
    assert largest_difference(traced.buffers, eager.buffers) <= 1e-6
    assert largest_difference(eager.params, state.params) > 1e-4
