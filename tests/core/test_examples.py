"""Arithmetic over examples, on any shape."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev

from funcrobust.core.examples import flat, inner, per_example, safe_norm, squared_norm, unit

SHAPES = [(4,), (4, 7), (4, 3, 5), (4, 3, 5, 5)]


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_function_goes_example_by_example(shape):
    a, b = draw(shape), draw(shape, 1)
    for i in range(len(a)):
        assert float(inner(a, b)[i]) == pytest.approx(float((a[i] * b[i]).sum()), rel=1e-12)
        assert float(squared_norm(a)[i]) == pytest.approx(float((a[i] ** 2).sum()), rel=1e-12)
        assert float(safe_norm(a)[i]) == pytest.approx(float((a[i] ** 2).sum()) ** 0.5, rel=1e-12)
        assert (unit(a)[i] - a[i] / (a[i] ** 2).sum() ** 0.5).abs().max() <= 1e-12
    assert flat(a).shape == (4, a[0].numel())
    assert torch.equal(per_example(torch.arange(4), a).expand_as(a)[3], torch.full(shape[1:], 3))


def test_safe_norm_has_derivative_zero_at_zero():
    x = draw((3, 4))
    x[1] = 0
    slope = grad(lambda x: safe_norm(x).sum())(x)
    assert (slope - unit(x)).abs().max() <= 1e-12
    assert slope[1].abs().max() == 0
    assert torch.isfinite(jacrev(grad(lambda x: safe_norm(x).sum()))(x)).all()


def test_unit_has_its_derivative():
    """d(x/‖x‖) = (v − u⟨u, v⟩)/‖x‖, although the scaling inside is held constant."""
    x, v = draw((3, 4)), draw((3, 4), 1)
    _, found = torch.func.jvp(unit, (x,), (v,))
    u = unit(x)
    expected = (v - u * inner(u, v)[:, None]) / safe_norm(x)[:, None]
    assert (found - expected).abs().max() <= 1e-12


def test_unit_has_a_finite_derivative_however_small_x_is():
    """In float32 too, where 1/‖x‖ overflows: 0 and denormals have the derivative 0."""
    for size in (0.0, 1e-40, 1e-36, 1e-20, 1.0):
        x = torch.full((2, 3), size)
        _, pull = torch.func.vjp(unit, x)
        (slope,) = pull(torch.full((2, 3), 10.0))
        assert torch.isfinite(slope).all(), size
