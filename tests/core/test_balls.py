"""Balls, property by property."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DERIVATIVES, directional_difference, inner, random_direction

import funcrobust as fr
from funcrobust.core.balls.ball import require_center

RADII = st.floats(0.0, 3.0)
SEEDS = st.integers(0, 2**31)
MAKERS = {"linf": fr.linf, "l2": fr.l2, "unconstrained": lambda _: fr.unconstrained()}


def draw(seed: int, inside: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x if inside else 4 * x - 1.5


def size(name: str, delta: torch.Tensor) -> torch.Tensor:
    flat = delta.flatten(1)
    return {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "unconstrained": 0 * flat[:, 0]}[
        name
    ]


@pytest.mark.parametrize("name", MAKERS)
@settings(deadline=None, max_examples=60)
@given(radius=RADII, seed=SEEDS)
def test_projection_lands_inside_and_is_idempotent(name, radius, seed):
    ball = MAKERS[name](radius)
    center, x = draw(seed, inside=True), draw(seed + 1, inside=False)
    p = ball.project(x, center)
    assert ((p >= 0) & (p <= 1)).all()
    assert (size(name, p - center) <= radius + 1e-12).all()
    assert (ball.project(p, center) - p).abs().max() <= 1e-12


@pytest.mark.parametrize("name", MAKERS)
@settings(deadline=None, max_examples=60)
@given(radius=RADII, seed=SEEDS)
def test_projection_is_non_expansive(name, radius, seed):
    ball = MAKERS[name](radius)
    center, a, b = draw(seed, True), draw(seed + 1, False), draw(seed + 2, False)
    before = (a - b).flatten(1).norm(dim=1)
    after = (ball.project(a, center) - ball.project(b, center)).flatten(1).norm(dim=1)
    assert (after <= before + 1e-12).all()


@pytest.mark.parametrize("name", MAKERS)
@settings(deadline=None, max_examples=40)
@given(radius=RADII, seed=SEEDS)
def test_samples_are_inside_and_counted(name, radius, seed):
    ball = MAKERS[name](radius)
    center = draw(seed, inside=True)
    first, again = (ball.sample(center, fr.generator(seed, "test")) for _ in range(2))
    assert torch.equal(first, again)
    assert ((first >= 0) & (first <= 1)).all()
    assert (size(name, first - center) <= radius + 1e-12).all()


@pytest.mark.parametrize("name", ["linf", "l2"])
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_steepest_maximises_the_inner_product_on_the_unit_ball(name, seed):
    """⟨∇, steepest⟩ is the dual norm of ∇, the most that any unit step can gain (Hölder)."""
    g = draw(seed, inside=False)
    s = MAKERS[name](1.0).steepest(g)
    dual = {"linf": g.flatten(1).abs().sum(1), "l2": g.flatten(1).norm(dim=1)}[name]
    assert torch.allclose((g * s).flatten(1).sum(1), dual)
    assert (size(name, s) <= 1 + 1e-12).all()


def test_zero_gradient_gives_no_step_and_finite_derivatives():
    g = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for ball in (fr.l2(1.0), fr.linf(1.0), fr.unconstrained()):
        assert ball.steepest(g).abs().max() == 0
    jacobian = torch.func.jacrev(lambda g: fr.l2(1.0).steepest(g).sum())(g)
    assert torch.isfinite(jacobian).all()


@pytest.mark.parametrize("size", [1e-12, 1e-25, 1e-35])
def test_l2_steps_have_unit_length_however_small_the_gradient(size):
    """A confident network's gradients are tiny: a shorter step would pass for robustness."""
    g = size * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fr.l2(1.0).steepest(g).flatten(1).norm(dim=1), torch.ones(2))


def test_projection_at_the_centre_has_finite_derivatives():
    center = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    found = torch.func.grad(lambda x: fr.l2(0.1).project(x, center).sum())(center)
    assert torch.allclose(found, torch.ones_like(found))


def test_l2_samples_fill_the_ball_uniformly():
    """In d dimensions the share of samples within r·radius is r^d."""
    center = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    r = (fr.l2(0.4).sample(center, fr.generator(0, "t")) - center).flatten(1).norm(dim=1) / 0.4
    for q in (0.3, 0.6, 0.9):
        assert abs(float((r < q).double().mean()) - q**2) < 4 * math.sqrt(0.25 / 4000)


def test_infinite_radius_is_the_bounds_alone():
    x, center = draw(1, inside=False), draw(2, inside=True)
    for ball in (fr.l2(math.inf), fr.linf(math.inf)):
        assert torch.equal(ball.project(x, center), x.clamp(0, 1))
    with pytest.raises(fr.FuncrobustError, match="infinite radius"):
        fr.l2(math.inf).sample(center, fr.generator(0, "t"))


def test_own_bounds():
    p = fr.linf(10.0, bounds=(-1.0, 0.5)).project(draw(3, inside=False), draw(4, inside=True))
    assert p.min() >= -1
    assert p.max() <= 0.5
    for wrong in ((1.0, 0.0), (0.0, 0.0), (0.0, math.nan)):
        for make in (fr.unconstrained, lambda bounds: fr.l2(1.0, bounds=bounds)):
            with pytest.raises(fr.FuncrobustError, match="low < high"):
                make(bounds=wrong)


SHAPES = [(3, 7), (3, 5, 7), (3, 2, 4, 4), (3, 2, 4, 4, 4), (3,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["linf", "l2", "smooth_linf"])
@pytest.mark.parametrize("bounds", [None, (-math.inf, math.inf)])
def test_no_bounds_on_any_shape(shape, name, bounds):
    """Only the radius confines; every example is treated as if it stood alone."""
    ball = getattr(fr, name)(0.3, bounds=bounds)
    generator = torch.Generator().manual_seed(0)
    center, x = (9 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn = ball.sample(center, fr.generator(0, "t"))
    for p in (ball.project(x, center), drawn):
        delta = (p - center).reshape(3, -1)
        size = delta.norm(dim=1) if name == "l2" else delta.abs().amax(1)
        assert ((size > 0) & (size <= 0.3 + 1e-12)).all()
    for i in range(3):
        alone = ball.project(x[i : i + 1], center[i : i + 1])
        assert (ball.project(x, center)[i] - alone[0]).abs().max() <= 1e-12
        assert (ball.steepest(x)[i] - ball.steepest(x[i : i + 1])[0]).abs().max() <= 1e-12


@pytest.mark.parametrize("bounds", [None, (-math.inf, math.inf), (0.0, math.inf)])
def test_what_is_infinite_has_no_uniform_start(bounds):
    center = draw(0, inside=True)
    for ball in (fr.unconstrained(bounds=bounds), fr.linf(math.inf, bounds=bounds)):
        assert ball.project(9 * center, center).max() > 1
        with pytest.raises(fr.FuncrobustError, match="no uniform start"):
            ball.sample(center, fr.generator(0, "t"))
    with pytest.raises(fr.FuncrobustError, match="finite"):
        fr.fourier(bounds=bounds)


BALLS = {
    "linf": fr.linf(0.1), "l2": fr.l2(0.1), "smooth": fr.smooth_linf(0.1),
    "unconstrained": fr.unconstrained(), "fourier": fr.fourier(),
    "masked": fr.masked(fr.l2(0.1), torch.ones(4, 4).bool()),
    "with_steps": fr.with_steps(fr.linf(0.1), fr.l2(0.1)),
    "with_block_means": fr.with_block_means(fr.l2(0.1), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BALLS)
def test_a_centre_outside_the_bounds_is_refused(name):
    """Normalised inputs in a ball with the bounds of images: clamping would move them by 1."""
    for far in (draw(0, inside=True) - 0.5, draw(0, inside=False), draw(0, inside=True) / 0):
        with pytest.raises(fr.FuncrobustError, match=r"outside the ball's bounds \[0, 1\]"):
            require_center(BALLS[name], far)
        with pytest.raises(fr.FuncrobustError, match="outside"):
            BALLS[name].sample(far, fr.generator(0, "t"))


def test_a_centre_on_the_bounds_or_a_rounding_beyond_is_let_pass():
    center = torch.tensor([[0.0, 1.0], [-1e-7, 1 + 1e-7]])
    require_center(fr.l2(1.0), center)
    require_center(fr.l2(1.0), center[:0])
    require_center(fr.l2(1.0, bounds=None), 9 * center)
    require_center(fr.l2(1.0, bounds=(-math.inf, math.inf)), center / 0)
    require_center(fr.random_smoothing(1.0), 9 * center)


def test_the_centre_is_looked_at_where_that_is_possible():
    """Not in a transform, where it may be another operator's point, nor where it has no values."""

    def value(center):
        require_center(fr.l2(1.0), center)
        return center.sum()

    far = torch.full((2, 3), 9.0)
    with pytest.raises(fr.FuncrobustError, match="outside"):
        value(far)
    assert torch.equal(torch.func.grad(value)(far), torch.ones_like(far))
    assert torch.func.vmap(value)(far).tolist() == [27.0, 27.0]
    assert value(far.to("meta")).is_meta
    assert torch.compile(value, fullgraph=True, backend="eager")(far) == 54


@pytest.mark.parametrize("name", [*BALLS, "random_smoothing"])
def test_bytes_are_refused_in_one_line(name):
    ball = BALLS.get(name, fr.random_smoothing(0.1))
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    calls = [lambda: ball.sample(images, fr.generator(0, "t"))]
    if name != "random_smoothing":
        calls += [lambda: ball.project(images, images), lambda: ball.project(images / 255, images)]
    for call in calls:
        with pytest.raises(fr.FuncrobustError, match="divide by 255"):
            call()


@pytest.mark.parametrize("radius", [-1.0, float("nan")])
def test_bad_radius(radius):
    for make in (fr.linf, fr.l2):
        with pytest.raises(fr.FuncrobustError, match="radius"):
            make(radius)


def test_every_ball_keeps_the_contract():
    for ball in (fr.linf(0.1), fr.l2(0.1), fr.unconstrained()):
        assert isinstance(ball, fr.Ball)
    assert not fr.linf(0.1).differentiable


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_fourier_is_ascent_on_the_scaled_coefficients(problem, decay):
    """Against the parameterisation itself: image = sigmoid(F⁻¹(s·w)), w moved by plain autograd."""
    rows, columns = torch.fft.fftfreq(8).double(), torch.fft.fftfreq(8).double()
    scale = (rows[:, None] ** 2 + columns**2).sqrt().clamp_min(1 / 8) ** -decay
    scale = scale / scale.square().mean().sqrt()
    w = torch.fft.fft2(torch.logit(problem.x), norm="ortho") / scale
    for _ in range(4):
        w.requires_grad_()
        image = torch.sigmoid(torch.fft.ifft2(scale * w, norm="ortho").real)
        loss = torch.nn.functional.cross_entropy(problem.module(image), problem.y, reduction="sum")
        w = (w + 5.0 * torch.autograd.grad(loss, w)[0]).detach()
    expected = torch.sigmoid(torch.fft.ifft2(scale * w, norm="ortho").real)
    attack = fr.pgd(problem.loss, fr.fourier(decay=decay), step_size=5.0, steps=4)
    found = attack(problem.params, problem.x, problem.y)
    assert (found - problem.x).abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-10


def test_fourier_is_for_images():
    ball, x = fr.fourier(decay=1.0), torch.full((4, 8), 0.5)
    loss = lambda _, x, __: x.sum(1)  # noqa: E731
    with pytest.raises(fr.FuncrobustError, match="images"):
        fr.pgd(loss, ball, step_size=1.0, steps=1)({}, x, torch.zeros(4, dtype=torch.int64))


def test_fourier_stays_inside_the_bounds(problem):
    attack = fr.pgd(problem.loss, fr.fourier(decay=1.0), step_size=1e3, steps=3)
    found = attack(problem.params, problem.x.round(), problem.y)
    assert torch.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("ball", [fr.fourier(), fr.fourier(decay=1.0), fr.smooth_linf(0.3)])
@pytest.mark.parametrize("derivative", ["adjoint", "unrolled"])
def test_psi_over_the_smooth_balls(problem, ball, derivative):
    """ψ's derivative in θ against central differences."""
    psi = fr.psi(
        problem.loss,
        ball,
        step_size=0.05,
        steps=3,
        targeted=True,
        derivative=DERIVATIVES[derivative],
    )
    weights = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(2)).double()

    def value(params):
        return (psi(params, problem.x, problem.y) * weights).sum()

    direction = random_direction(problem.params)
    exact = inner(torch.func.grad(value)(problem.params), direction)
    numeric = directional_difference(value, problem.params, direction)
    assert abs(numeric) > 1e-4
    assert abs(exact - numeric) <= 1e-6 * abs(numeric) + 1e-7  # rounding of a value near 10


def test_smooth_linf_becomes_sign():
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    sharp, soft = (fr.smooth_linf(1.0, temperature=t).steepest(gradient) for t in (1e-4, 1.0))
    settled = gradient.abs() > 1e-3
    assert (sharp - gradient.sign())[settled].abs().max() < 1e-6
    rms = gradient.square().flatten(1).mean(1).sqrt()[:, None, None, None]
    assert (soft - torch.tanh(gradient / rms)).abs().max() < 1e-12
    assert fr.smooth_linf(1.0).steepest(torch.zeros(2, 3, 4, 4)).abs().max() == 0


def test_random_smoothing_is_gaussian_noise_and_no_step(problem):
    ball = fr.random_smoothing(0.25)
    x = torch.full((8, 3, 32, 32), 0.5).double()
    noise = ball.sample(x, fr.generator(0, "noise")) - x
    assert abs(float(noise.std()) - 0.25) < 0.005
    assert abs(float(noise.mean())) < 0.01
    attack = fr.pgd(problem.loss, ball, step_size=1.0, steps=3)
    assert torch.equal(attack(problem.params, problem.x, problem.y), problem.x)


@pytest.mark.parametrize(
    "make",
    [lambda: fr.fourier(decay=-1.0), lambda: fr.smooth_linf(0.1, temperature=0.0),
     lambda: fr.random_smoothing(float("nan"))],
)  # fmt: skip
def test_bad_smooth_balls(make):
    with pytest.raises(fr.FuncrobustError):
        make()
