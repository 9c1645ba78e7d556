"""A compiled update is checked against float64 before it is trusted; every method compiles."""

from __future__ import annotations

import math

import pytest
import torch
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
    attack = fr.rs_fgsm(BALL, step_size=10 / 255)
    objective = fr.cure_training(problem.model, attack.perturb, lam=0.5, h=1.0, dtype=dtype)
    optim = fr.optimizer("SGD", rate, weight_decay=DECAY)
    update = fr.make_update(objective, optim, decay=0.9)
    batch = (problem.x, problem.y, attack.start(problem.x, fr.generator(0, "start")))
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


def noise_at(views, x, k):
    return x + 0.03 * views.noise[k]


def term(make):
    """A regulariser of the running network's cross-entropy that may want points around x."""
    return lambda views: (
        lambda params, x, y: make(fr.cross_entropy(views.evaluating), views, x)(params, x, y)
    )


TERMS = {
    "cure": fr.cure_term(0.7),
    "cure_batched": fr.cure_term(0.7, backward="batched"),
    "cure_forward": fr.cure_term(0.7, backward="forward"),
    "cure_central": fr.cure_term(0.7, "random", "central"),
    "cure_one_sided": fr.cure_term(0.7, backward="one-sided"),
    "cure_random": fr.cure_term(0.7, "random"),
    "cure_fgsm": fr.cure_term(0.7, "fgsm"),
    "cure_linf": fr.cure_term(0.7, "linf"),
    "gradient_alignment": term(
        lambda loss, v, x: fr.gradient_alignment(loss, toward=noise_at(v, x, 0))
    ),
    "elle": term(
        lambda loss, v, x: fr.elle(
            loss, ends=(noise_at(v, x, 0), noise_at(v, x, 1)), mix=v.noise[2, :, 0, 0, 0].abs()
        )
    ),
    "local_linearity": term(
        lambda loss, v, x: fr.local_linearity(
            loss, fr.pgd_k(BALL, step_size=0.02, steps=2).perturb, start=noise_at(v, x, 0)
        )
    ),
    "input_gradient_norm": lambda v: fr.input_gradient_norm(fr.cross_entropy(v.evaluating)),
    "helper": lambda v: fr.helper(
        fr.cross_entropy(v.training), toward=v.perturbed, labels=lambda x: x[:, :, 0, 0].argmax(1)
    ),
    "clean": lambda v: fr.cross_entropy(v.training),
}
ATTACKS = {
    "rs_fgsm": fr.rs_fgsm(BALL, step_size=10 / 255),
    "n_fgsm": fr.n_fgsm(8 / 255),
    "zerograd": fr.zerograd(BALL, step_size=10 / 255),
    "pgd_k": fr.pgd_k(BALL, step_size=4 / 255, steps=2),
}
COMBINED = [
    ("rs_fgsm", ["cure"], {}), ("n_fgsm", ["cure_random"], {}), ("zerograd", ["elle"], {}),
    ("pgd_k", ["gradient_alignment"], {}), ("pgd_k", ["helper", "clean"], {"trades": 6.0}),
    ("rs_fgsm", ["local_linearity"], {}), ("rs_fgsm", ["input_gradient_norm"], {}),
    ("rs_fgsm", ["cure_batched", "cure_forward", "cure_central", "cure_one_sided"], {}),
    ("n_fgsm", ["cure_fgsm", "cure_linf"], {"batch_statistics": True}),
    ("zerograd", ["cure"], {"statistics": "batch", "fraction": 0.5, "dtype": BF16}),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "names", "options"), COMBINED)
def test_every_method_traces_into_one_graph(attack, names, options):
    """Without a break, and the traced update is the eager one."""
    problem = make_problem(torch.float32)
    objective = fr.robust_training(
        problem.model, ATTACKS[attack].perturb, terms={n: (0.5, TERMS[n]) for n in names}, **options
    )
    optim = fr.optimizer("SGD", 0.1, weight_decay=5e-4)
    update = fr.make_update(objective, optim, decay=0.9)
    state = fr.initial_state(problem.model, optim, averaged=True)
    noise = 2 * torch.rand(3, *problem.x.shape, generator=fr.generator(0, "noise")) - 1
    start = ATTACKS[attack].start(problem.x, fr.generator(0, "start"))
    batch = (problem.x, problem.y, start, noise, torch.tensor(0.5))
    eager, wanted = update(state, *batch)
    traced, metrics = torch.compile(update, fullgraph=True, backend="eager")(state, *batch)
    assert set(metrics) == set(wanted) >= set(names)
    for found, expected in ((traced.params, eager.params), (traced.average, eager.average)):
        assert largest_difference(found, expected) <= 1e-6
    assert largest_difference(eager.params, state.params) > 1e-4
