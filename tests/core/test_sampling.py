"""Drawing with a restorer, where the restorer is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core.randomness import normal

A = 10.0
FREE = fr.unconstrained(bounds=None)
MEANS = torch.tensor([0.2, 0.7], dtype=torch.float64)


def energy(params, x, y):
    """Of images that are all of one colour: D(x) = x − a∇ℓ is that colour, whatever x is."""
    return (x - params["mean"][y].reshape(-1, 1)).square().sum(1) / (2 * A)


PARAMS = {"mean": MEANS}
Y = torch.arange(6) % 2
START = torch.randn(6, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def left(x):
    """Per example, the distance to the colour over that of the start."""
    colour = MEANS[Y][:, None]
    return (x - colour).norm(dim=1) / (START - colour).norm(dim=1)


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("remain", [0.3, 0.01])
def test_a_part_of_the_way_leaves_what_it_says(steps, remain):
    """By ψ's own steps, shortened: any number of them ends at the same place."""
    h = fr.part_of_the_way(steps, remain)
    psi = fr.psi(energy, FREE, step_size=h * A, steps=steps, targeted=True)
    assert (left(psi(PARAMS, START, Y)) - remain).abs().max() < 1e-12


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.2])
def test_noise_gives_back_what_beta_says(beta):
    """E‖x_T − c‖² = ((1 − h)² + γ²)^T·‖x_0 − c‖² = remain²·‖x_0 − c‖²."""
    draw = fr.sampler(
        energy, FREE, step_size=A, steps=30, beta=beta, remain=0.1, key=fr.key(0, "test")
    )
    found = left(draw(PARAMS, START, Y))
    assert (found / 0.1 - 1).abs().max() < (1e-10 if beta == 1 else 0.15)


def test_without_noise_it_is_psi(problem):
    loss, h = fr.logit(problem.model.predict), fr.part_of_the_way(4, 0.2)
    draw = fr.sampler(loss, FREE, step_size=2.0, steps=4, beta=1.0, remain=0.2, key=fr.key(0, "k"))
    psi = fr.psi(loss, FREE, step_size=2.0 * h, steps=4, targeted=True)
    arguments = (problem.params, problem.x, problem.y)
    assert (draw(*arguments) - psi(*arguments)).abs().max() <= 1e-14


def test_its_noise_is_counted(problem):
    loss = fr.logit(problem.model.predict)

    def drawn(number):
        draw = fr.sampler(loss, FREE, step_size=2.0, steps=3, key=fr.key(0, "draw", number))
        return draw(problem.params, problem.x, problem.y)

    assert torch.equal(drawn(0), drawn(0))
    assert (drawn(0) - drawn(1)).abs().max() > 1e-3


def test_it_is_differentiable_and_maps(problem):
    """A contrast's negative phase wants the slope through the sampler (Du et al. 2021)."""
    loss = fr.logit(problem.model.predict)
    draw = fr.sampler(loss, FREE, step_size=0.5, steps=3, key=fr.key(0, "draw"))
    end = fr.mean(fr.through(draw, fr.entropy(problem.model.predict)))
    slope = grad(end)(problem.params, problem.x, problem.y)
    v = {k: torch.cos(torch.arange(p.numel()).reshape(p.shape) + 1.0) for k, p in slope.items()}
    e = 1e-6

    def moved(sign):
        params = {k: p + sign * e * v[k] for k, p in problem.params.items()}
        return end(params, problem.x, problem.y)

    numeric = (moved(1) - moved(-1)) / (2 * e)
    exact = sum((slope[k] * v[k]).sum() for k in v)
    assert abs(exact) > 1e-4
    assert abs(numeric - exact) <= 1e-6 * abs(exact)

    stacked = {k: torch.stack([p, 1.1 * p]) for k, p in problem.params.items()}
    both = vmap(lambda params: draw(params, problem.x, problem.y))(stacked)
    second = draw({k: p[1] for k, p in stacked.items()}, problem.x, problem.y)
    assert (both[1] - second).abs().max() <= 1e-12


def test_it_compiles(problem):
    draw = fr.sampler(
        fr.logit(problem.model.predict), FREE, step_size=0.5, steps=2, key=fr.key(0, "draw")
    )
    arguments = (problem.params, problem.x, problem.y)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert (compiled(*arguments) - draw(*arguments)).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"beta": 0.0}, "beta"), ({"beta": 1.5}, "beta"), ({"remain": 1.0}, "remain"),
        ({"remain": 0.0}, "remain"), ({"steps": 0}, "steps"), ({"step_size": -1.0}, "step_size"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given, word):
    with pytest.raises(fr.FuncrobustError, match=word):
        fr.sampler(energy, FREE, **{"step_size": A, "steps": 3, "key": fr.key(0, "t")} | given)


def test_normal_numbers():
    """Their law by the Kolmogorov-Smirnov distance; none is the same for another count or key."""
    k = fr.key(0, "normal")
    numbers = normal(k, 0, (100, 1000))
    ordered = numbers.double().flatten().sort().values
    cdf = torch.distributions.Normal(0.0, 1.0).cdf(ordered)
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (cdf - steps).abs().max() < 1.95 / len(ordered) ** 0.5, "at the level of 0.1 %"
    assert numbers.isfinite().all()
    others = (normal(k, 1, (100, 1000)), normal(fr.key(1, "normal"), 0, (100, 1000)))
    for other in others:
        assert abs((numbers * other).mean()) < 4 / len(ordered) ** 0.5
    assert torch.equal(numbers, normal(k, 0, (100, 1000)))


def test_a_ball_confines_and_does_not_change_the_steps():
    """An L2 ball's own steps are of length 1, and would leave more than was asked."""
    ball = fr.l2(1e6, bounds=None)
    draw = fr.sampler(
        energy, ball, step_size=A, steps=10, beta=1.0, remain=0.1, key=fr.key(0, "test")
    )
    assert (left(draw(PARAMS, START, Y)) - 0.1).abs().max() < 1e-10
    walk = fr.Restoring(4, 0.2, step_size=A).toward(energy, ball)
    inside = MEANS[Y][:, None] + 0.01 * START  # whose end the clamp to [0, 1] does not touch
    gone = (walk(PARAMS, inside, Y) - MEANS[Y][:, None]).norm(dim=1) / (0.01 * START).norm(dim=1)
    assert (gone - 0.2).abs().max() < 1e-10


def test_an_example_without_a_gradient_has_no_derivative_that_is_nan():
    network = torch.nn.Linear(3, 2).double()
    torch.nn.init.zeros_(network.weight)
    model = fr.functionalize(network)
    draw = fr.sampler(
        fr.logit(model.predict), fr.unconstrained(bounds=None), step_size=0.1, steps=3,
        key=fr.key(0, "draw"),
    )  # fmt: skip
    x, y = torch.rand(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    found = torch.func.grad(lambda p: draw(p, x, y).square().sum())(model.params)
    assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(dtype):
    params = {"mean": MEANS.to(dtype)}
    draw = fr.sampler(energy, FREE, step_size=A, steps=3, beta=0.5, key=fr.key(0, "draw"))
    found = draw(params, START.to(dtype), Y)
    assert found.dtype == dtype
    assert found.isfinite().all()
