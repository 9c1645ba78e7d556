"""Nothing assumes images: features (B, d) and token embeddings (B, T, d), without bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from problems import (
    DERIVATIVES,
    directional_difference,
    inner,
    largest_difference,
    random_direction,
)
from torch import Tensor, nn
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.regularisers.cure import DerivativeOfCure

SHAPES = {"features": (6, 7), "tokens": (6, 3, 7)}


class OverTokens(nn.Module):
    """Linear, SiLU, mean over what lies between batch and features, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.first(x)) * torch.arange(1, 10)
        return self.last(hidden.flatten(1, -2).mean(1) if x.ndim > 2 else hidden)


@dataclass(frozen=True)
class Rows:
    module: nn.Module
    model: fr.Functional
    x: Tensor
    y: Tensor
    loss: fr.Loss

    @property
    def params(self) -> fr.Params:
        return self.model.params


@pytest.fixture(params=SHAPES)
def rows(request) -> Rows:
    """Normalised inputs: as large as they like, of either sign."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = OverTokens().double()
        x = 3 * torch.randn(SHAPES[request.param], dtype=torch.float64)
    model = fr.functionalize(module)
    y = torch.tensor([0, 1, 2, 3, 1, 0])
    return Rows(module.eval(), model, x, y, fr.cross_entropy(model.predict))


BALLS = {
    "linf": fr.linf(0.5, bounds=None), "l2": fr.l2(1.5, bounds=None),
    "unconstrained": fr.unconstrained(bounds=None), "smooth": fr.smooth_linf(0.5, bounds=None),
}  # fmt: skip


def slope_of(rows, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(rows.module(x), rows.y, reduction="sum"), x)[0]


def norm(x):
    return x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))


def weights_like(x, seed=7):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", ["linf", "l2", "unconstrained"])
def test_pgd_is_its_formula(rows, name):
    """From a random start where the ball has one; every example as if it stood alone."""
    ball, alpha = BALLS[name], 0.4
    start = rows.x if name == "unconstrained" else ball.sample(rows.x, fr.generator(0, "start"))
    attack = fr.pgd(rows.loss, ball, step_size=alpha, steps=4)
    found = attack(rows.params, start, rows.y, center=rows.x)
    x = start
    for _ in range(4):
        g = slope_of(rows, x)
        x = x + alpha * {"linf": g.sign(), "l2": g / norm(g), "unconstrained": g}[name] - rows.x
        if name == "linf":
            x = x.clamp(-0.5, 0.5)
        elif name == "l2":
            x = x * (1.5 / norm(x)).clamp(max=1.0)
        x = rows.x + x
    assert (found - x).abs().max() <= 1e-12
    assert found.shape == rows.x.shape
    assert (found.abs() > 1).any(), "nothing clamps to [0, 1]"
    assert (
        rows.loss(rows.params, found, rows.y).mean() > rows.loss(rows.params, start, rows.y).mean()
    )
    alone = attack(rows.params, start[:1], rows.y[:1], center=rows.x[:1])
    assert (alone - found[:1]).abs().max() <= 1e-12


@pytest.mark.parametrize("make", [fr.rs_fgsm, fr.n_fgsm, fr.zerograd, fr.pgd_k])
def test_attacks_ascend(rows, make):
    attack = make(BALLS["linf"])
    start = attack.start(rows.x, fr.generator(0, "start"))
    end = attack.perturb(rows.loss)(rows.params, start, rows.y, center=rows.x)
    assert (end - rows.x).abs().max() <= (1.5 if make is fr.n_fgsm else 0.5) + 1e-12
    before, after = (rows.loss(rows.params, x, rows.y).mean() for x in (start, end))
    assert after > before


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"use_best": True}])
def test_what_a_step_carries(rows, options):
    """Momentum and the best so far ride along in any shape, and have ψ's derivative."""
    psi = fr.psi(rows.loss, BALLS["l2"], step_size=0.3, steps=4, **options)
    check_slope(rows, lambda p: (psi(p, rows.x, rows.y) * weights_like(rows.x)).sum())
    if "use_best" in options:
        ends = [
            fr.pgd(rows.loss, BALLS["l2"], step_size=0.3, steps=t)(rows.params, rows.x, rows.y)
            for t in range(5)
        ]
        losses = torch.stack([rows.loss(rows.params, x, rows.y) for x in ends])
        found = rows.loss(rows.params, psi(rows.params, rows.x, rows.y), rows.y)
        assert (found - losses.amax(0)).abs().max() <= 1e-12


def check_slope(rows, f, tolerance=1e-6, numeric_of=None):
    """The gradient of f in θ, against a finite difference (of another function, if given)."""
    direction = random_direction(rows.params)
    exact = inner(grad(f)(rows.params), direction)
    numeric = directional_difference(numeric_of or f, rows.params, direction)
    assert abs(exact) > 1e-4
    assert abs(exact - numeric) <= tolerance * abs(numeric)


STEPS = 80  # of a contraction by 0.6 or less
SEEN = {"truncated": 3, "one_step": 1}


def contracting(rows, derivative, steps=STEPS):
    def pulled(params, x, y):
        return rows.loss(params, x, y) + 3.0 * (x - 0.5).square().flatten(1).sum(1)

    return fr.psi(
        pulled, BALLS["unconstrained"], step_size=0.1, steps=steps, targeted=True,
        derivative=derivative,
    )  # fmt: skip


@pytest.mark.parametrize("mode", DERIVATIVES)
def test_psi_in_every_derivative(rows, mode):
    """In θ, against finite differences of the steps that are seen."""
    seen = SEEN.get(mode, STEPS)
    held = contracting(rows, fr.unrolled(), STEPS - seen)(rows.params, rows.x, rows.y)
    rest = contracting(rows, fr.unrolled(), seen)
    psi = contracting(rows, DERIVATIVES[mode])
    w = weights_like(rows.x)
    check_slope(
        rows, lambda p: (psi(p, rows.x, rows.y) * w).sum(),
        1e-4 if mode == "implicit" else 1e-6,
        lambda p: (rest(p, held, rows.y, center=rows.x) * w).sum(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["l2", "unconstrained", "smooth", "tight"])
def test_psi_over_the_differentiable_balls(rows, name):
    """In θ and in the start, by the adjoint; per example by vmap. The tight one is left twice."""
    ball = fr.l2(0.2, bounds=None) if name == "tight" else BALLS[name]
    psi = fr.psi(rows.loss, ball, step_size=0.08, steps=4, targeted=True)
    w = weights_like(rows.x)

    def f(params, x):
        return (psi(params, x, rows.y, center=rows.x) * w).sum()

    check_slope(rows, lambda p: f(p, rows.x))
    step = weights_like(rows.x, 3)
    found = grad(f, 1)(rows.params, rows.x)
    ahead, behind = (f(rows.params, rows.x + s * step) for s in (1e-6, -1e-6))
    numeric = float(ahead - behind) / 2e-6
    assert abs(numeric) > 1e-2
    assert abs(float((found * step).sum()) - numeric) <= 1e-6 * abs(numeric)

    def one(params, x, y, w):
        return (psi(params, x[None], y[None])[0] * w).sum()

    each = vmap(grad(one), (None, 0, 0, 0))(rows.params, rows.x, rows.y, w)
    whole = grad(lambda p: (psi(p, rows.x, rows.y) * w).sum())(rows.params)
    assert largest_difference({k: g.sum(0) for k, g in each.items()}, whole) <= 1e-9


@pytest.mark.parametrize("derivative", get_args(DerivativeOfCure))
@pytest.mark.parametrize("direction", ["classic", "random"])
def test_cure(rows, direction, derivative):
    """Its value in plain autograd; its slope by finite differences, z held as it is."""
    d = rows.x[0].numel()
    along = 2 * torch.rand(rows.x.shape, generator=torch.Generator().manual_seed(1)).double() - 1
    term = fr.cure(
        rows.loss, 0.1, along=along if direction == "random" else None, derivative=derivative
    )
    g = slope_of(rows, rows.x)
    z = 0.1 * (along if direction == "random" else g.sign()) / d**0.5
    expected = (slope_of(rows, rows.x + z) - g).flatten(1).norm(dim=1)
    found = term(rows.params, rows.x, rows.y)
    assert found.shape == (6,)
    assert (found - expected).abs().max() <= 1e-12

    def value(params):
        gradient = fr.input_gradient(rows.loss)
        here, there = (gradient(params, x, rows.y) for x in (rows.x, rows.x + z))
        if derivative == "one-sided":  # whose derivative is that of ⟨g(x + z), u⟩
            u = ((there - here) / norm(there - here)).detach()
            return (there * u).flatten(1).sum(1).mean()
        return (there - here).flatten(1).norm(dim=1).mean()

    slope = grad(fr.mean(term))(rows.params, rows.x, rows.y)
    wanted = grad(value)(rows.params)
    off = {k: slope[k] - w for k, w in wanted.items()}
    relative = (inner(off, off) / inner(wanted, wanted)) ** 0.5
    # A finite difference over the length of z errs by its square.
    assert relative <= (1e-2 if derivative in ("central", "one-sided") else 1e-10)
    if derivative in ("shared", "batched", "forward"):
        check_slope(rows, lambda p: term(p, rows.x, rows.y).mean(), 1e-5)


def operators(rows, part=slice(None)):
    """Losses of a part of the rows, with what was drawn for it."""
    draw = fr.generator(0, "points")
    a, b = (BALLS["linf"].sample(rows.x, draw)[part] for _ in range(2))
    mix, y = torch.linspace(0.1, 0.9, 6).double()[part], rows.y[part]
    search = fr.pgd_k(BALLS["linf"], steps=3)
    # Whose steps are as long as the gradient: the drift of steps of one length hardly has a slope.
    psi = fr.psi(rows.loss, BALLS["unconstrained"], step_size=0.2, steps=3, targeted=True)
    return {
        "gradient_difference": fr.gradient_difference(rows.loss, toward=a),
        "input_gradient_norm": fr.input_gradient_norm(rows.loss),
        "gradient_alignment": fr.gradient_alignment(rows.loss, toward=a),
        "gradient_alignment_code": fr.gradient_alignment(rows.loss, toward=a, form="code"),
        "local_linearity": fr.local_linearity(rows.loss, search, start=a),
        "linearity_error": fr.linearity_error(rows.loss, rows.params, a, y),
        "elle": fr.elle(rows.loss, ends=(a, b), mix=mix),
        "adversarial": fr.adversarial(rows.loss, search, start=a),
        "trades": fr.trades(rows.model.predict, search, start=a),
        "helper_examples": fr.helper_examples(rows.loss, toward=a, labels=lambda _: y),
        "drift": fr.drift(psi),
        "drift_l1": fr.drift(psi, distance=fr.l1_distance),
        "through": fr.through(psi, fr.entropy(rows.model.predict)),
        "away_from": fr.away_from(a),
        "top_curvature": fr.top_curvature(rows.loss, iterations=5),
    }


OPERATORS = (
    "gradient_difference", "input_gradient_norm", "gradient_alignment", "gradient_alignment_code",
    "local_linearity", "linearity_error", "elle", "adversarial", "trades", "helper_examples",
    "drift", "drift_l1", "through", "away_from", "top_curvature",
)  # fmt: skip
HOLDING = {
    "gradient_difference", "gradient_alignment_code", "local_linearity", "adversarial", "trades",
    "away_from", "top_curvature",
}  # fmt: skip
"""Those with a part that is constant in θ, which no finite difference of the whole sees."""


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(rows, name):
    """(B,) values, each that of its example alone; slopes as finite differences have them."""
    assert set(operators(rows)) == set(OPERATORS)
    term = operators(rows)[name]
    together = term(rows.params, rows.x, rows.y)
    assert together.shape == (6,)
    assert together.abs().min() > 0
    for i in range(6):
        one = slice(i, i + 1)
        alone = operators(rows, one)[name](rows.params, rows.x[one], rows.y[one])
        assert (together[one] - alone).abs().max() <= 1e-12 * max(1.0, float(together.abs().max()))
    if name not in HOLDING:
        check_slope(rows, lambda p: term(p, rows.x, rows.y).mean(), 1e-5)


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_evaluation(rows, ball):
    """Who is lost is lost at one of the iterates, against a plain attack on everybody."""
    ball, alpha = BALLS[ball], 0.2
    draw = torch.Generator().manual_seed(3)
    x = 3 * torch.randn((150, *rows.x.shape[1:]), generator=draw, dtype=torch.float64)
    y = rows.module(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4  # some are wrong to begin with
    clean = evaluation.correct(rows.model.predict, rows.params, x, y)
    assert int(clean.sum()) == 135
    stands = clean.clone()
    start = torch.cat([
        ball.sample(x[n : n + 1], fr.generator(0, "evaluate/robust", n))
        for n in clean.nonzero().squeeze(1).tolist()
    ])  # fmt: skip
    for steps in range(1, 7):
        attack = fr.pgd(rows.loss, ball, step_size=alpha, steps=steps)
        end = attack(rows.params, start, y[clean], center=x[clean])
        stands[clean] &= rows.module(end).argmax(1) == y[clean]
    stands[clean] &= rows.module(start).argmax(1) == y[clean]
    pgd = evaluation.Pgd(ball, step_size=alpha, steps=6)
    found = evaluation.robust(rows.model.predict, rows.params, x, y, pgd)
    assert torch.equal(found, stands)
    assert 10 < int(found.sum()) < 125
    mean = evaluation.mean_of(rows.loss, rows.params, x, y, batch_size=64)
    assert mean == pytest.approx(float(rows.loss(rows.params, x, y).mean()), rel=1e-12)


def test_training(rows):
    """The lift, an update and its vmap do not care for the shape either."""

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        robust = fr.adversarial(loss, fr.rs_fgsm(BALLS["linf"]), start=batch.start)
        return {"loss": (1.0, robust), "curvature": (0.1, fr.cure(loss, 0.3))}

    optim = fr.optimizer("adamw", 0.02, weight_decay=0.01, decayed=fr.matrices)
    update = fr.make_update(fr.training_objective(rows.model, compose), optim)
    state = fr.initial_state(rows.model, optim)
    batch = fr.Batch(rows.x, rows.y, BALLS["linf"].sample(rows.x, fr.generator(0, "start")))
    losses = []
    for _ in range(30):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert set(metrics) == {"loss", "curvature", "accuracy", "gradient_norm"}


def test_a_radius_on_images_bounds_is_refused_for_them(rows):
    """The default bounds [0, 1] would clamp normalised inputs by more than any radius."""
    attack = fr.pgd(rows.loss, fr.linf(0.5), step_size=0.1, steps=1)
    with pytest.raises(fr.FuncrobustError, match="bounds=None"):
        attack(rows.params, rows.x, rows.y)
