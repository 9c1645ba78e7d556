"""Auto-PGD by its definition; the reference implementation's iterates are in tests/oracles."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem
from torch.func import vmap

import funcrobust as fr
from funcrobust.core.perturbations.ascent import climb
from funcrobust.core.perturbations.auto_pgd import auto_ascent

BALLS = {"linf": fr.linf(0.05), "l2": fr.l2(0.4), "free": fr.linf(0.05, bounds=None)}


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def looked_at(problem, ball, steps):
    """x_0 … x_T, by looking at ever more of them."""
    ascent = auto_ascent(ball, steps=steps)
    start = ball.sample(problem.x, fr.generator(0, "apgd"))
    return [
        climb(problem.loss, ascent, t, problem.params, start, problem.y, problem.x)["x"]
        for t in range(steps + 1)
    ]


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_it_returns_the_best_of_all_iterates_each_inside_the_ball(problem, ball):
    steps = 12
    iterates = looked_at(problem, ball, steps)
    losses = torch.stack([problem.loss(problem.params, x, problem.y) for x in iterates])
    assert all(torch.allclose(ball.project(x, problem.x), x, atol=1e-12) for x in iterates)
    found = fr.apgd(problem.loss, ball, steps=steps)(
        problem.params, iterates[0], problem.y, center=problem.x
    )
    best = problem.loss(problem.params, found, problem.y)
    assert torch.allclose(best, losses.amax(0), rtol=1e-12)
    assert (best > losses[0]).all()


def test_targeted_it_descends(problem):
    ball, target = BALLS["linf"], (problem.y + 1) % 5
    attack = fr.apgd(problem.loss, ball, steps=15, targeted=True)
    found = attack(problem.params, problem.x, target)
    before, after = (problem.loss(problem.params, x, target) for x in (problem.x, found))
    assert (after < before).all()


def test_near_a_maximum_it_halves_its_steps_and_arrives():
    """ℓ = −‖x − a‖²: the fixed first step, of a whole diameter, would jump about for ever."""
    a = torch.tensor([[0.52, 0.49, 0.5]], dtype=torch.float64)
    x, y = torch.full_like(a, 0.5), torch.zeros(1, dtype=torch.int64)

    def loss(params, x, y):
        return -(x - a).square().sum(1)

    def distance(steps):
        return float((fr.apgd(loss, fr.linf(0.1), steps=steps)({}, x, y) - a).abs().max())

    assert distance(200) < 1e-3 < distance(5)
    state = climb(loss, auto_ascent(fr.linf(0.1), steps=100), 101, {}, x, y, x)
    assert float(state["size"]) <= 0.2 / 2**5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_half_precision_it_still_counts_its_steps(dtype):
    """Of 1300 the first 286 go by before it looks whether to halve; bfloat16 counts to 256."""
    a, x = (torch.full((1, 3), v, dtype=dtype) for v in (0.53125, 0.5))

    def loss(params, x, y):
        return -(x - a).square().sum(1)

    ascent = auto_ascent(fr.linf(0.125), steps=1300)
    before, after = (climb(loss, ascent, looks, {}, x, torch.zeros(1), x) for looks in (286, 287))
    assert float(before["size"]) == 0.25
    assert float(after["size"]) == 0.125
    assert after["x"].dtype == after["size"].dtype == dtype


def test_rows_do_not_see_one_another(problem):
    attack = fr.apgd(problem.loss, BALLS["l2"], steps=30)
    together = attack(problem.params, problem.x, problem.y)
    alone = torch.cat(
        [
            attack(problem.params, x[None], y[None])
            for x, y in zip(problem.x, problem.y, strict=True)
        ]
    )
    assert torch.allclose(together, alone, atol=1e-9)


def test_under_vmap_over_networks_and_compiled(problem):
    attack = fr.apgd(problem.loss, BALLS["l2"], steps=3)  # each step a checkpoint
    other = {k: 1.05 * p for k, p in problem.params.items()}
    stacked = {k: torch.stack([p, other[k]]) for k, p in problem.params.items()}
    expected = [attack(p, problem.x, problem.y) for p in (problem.params, other)]
    mapped = vmap(attack, in_dims=(0, None, None))(stacked, problem.x, problem.y)
    assert torch.allclose(mapped, torch.stack(expected), atol=1e-9)
    assert not torch.allclose(*expected, atol=1e-6)
    compiled = torch.compile(attack, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(problem.params, problem.x, problem.y), expected[0], atol=1e-9)


def test_it_is_an_attack_that_training_takes(problem):
    attack = fr.apgd_k(BALLS["linf"], steps=4)
    start = attack.start(problem.x, fr.generator(0, "start"))
    robust = fr.adversarial(problem.loss, attack, start=start)
    grads = torch.func.grad(fr.mean(robust))(problem.params, problem.x, problem.y)
    assert all(bool(g.isfinite().all()) for g in grads.values())
    plain = problem.loss(problem.params, problem.x, problem.y)
    assert (robust(problem.params, problem.x, problem.y) > plain).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "steps"), ({"rho": 1.5}, "rho"), ({"step_size": -1.0}, "step_size"),
        ({"ball": fr.unconstrained()}, "radius"),
    ],
)  # fmt: skip
def test_bad_input(problem, options, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        fr.apgd(problem.loss, **{"ball": BALLS["linf"], **options})
