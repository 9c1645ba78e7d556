"""A compiled update is checked against the eager one before it is trusted."""

from __future__ import annotations

import pytest
import torch
from conftest import make_problem

import funcrobust as fr
from funcrobust.compiling import relative_errors

BALL = fr.linf(8 / 255)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """torch 2.15's guards trip over two optimizers of unlike states in one process."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def case():
    problem = make_problem(torch.float32)
    objective = fr.cure_training(
        problem.model, lambda loss: fr.fgsm(loss, BALL, step_size=10 / 255), lam=0.5, h=1.0
    )
    # The schedule starts at 0: the first update moves no parameter, and is checked all the same.
    rate = fr.schedule("cyclic", lr_max=0.1, total_steps=10)
    optim = fr.optimizer("SGD", rate, weight_decay=5e-4)
    start = BALL.sample(problem.x, fr.generator(0, "start"))
    state = fr.initial_state(problem.model, optim)
    return fr.make_update(objective, optim), state, (problem.x, problem.y, start)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_right_compilation_is_returned(case, backend):
    update, state, batch = case
    compiled = fr.compile_checked(update, state, *batch, backend=backend)
    assert (
        max(relative_errors(state, update(state, *batch)[0], compiled(state, *batch)[0]).values())
        < 1e-4
    )


def wrong(graph, _):
    """A planted miscompilation: one weight-decay-like multiplication is off by a tenth."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target in ("add", "add_") and "alpha" in node.kwargs:
            node.kwargs = {**node.kwargs, "alpha": 2.0 * node.kwargs["alpha"]}
    graph.recompile()
    return graph.forward


def test_a_miscompilation_is_refused(case):
    update, state, batch = case
    with pytest.raises(fr.FuncrobustError, match="--no-compile"):
        fr.compile_checked(update, state, *batch, backend=wrong)


def test_bf16_within_its_tolerance():
    problem = make_problem(torch.float32)
    objective = fr.cure_training(
        problem.model, lambda loss: fr.fgsm(loss, BALL, step_size=10 / 255), lam=0.5, h=1.0,
        dtype=torch.bfloat16,
    )  # fmt: skip
    optim = fr.optimizer("SGD", 0.1)
    state, update = fr.initial_state(problem.model, optim), fr.make_update(objective, optim)
    fr.compile_checked(
        update, state, problem.x, problem.y, problem.x, tolerance=0.05, backend="aot_eager"
    )
