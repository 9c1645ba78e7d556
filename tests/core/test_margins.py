"""DLR against its equations, and against what it is for: logits of any scale."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(200, 7, generator=DRAW, dtype=torch.float64)
Y = torch.randint(7, (200,), generator=DRAW)
TARGET = (Y + torch.randint(1, 7, (200,), generator=DRAW)) % 7


def on_logits(build, *args):
    """A loss over the logits themselves."""
    return build(lambda params, x: x, *args)


def test_dlr_is_equation_6():
    found = on_logits(fr.dlr)({}, LOGITS, Y)
    for z, y, value in zip(LOGITS.tolist(), Y.tolist(), found.tolist(), strict=True):
        leading = sorted(z, reverse=True)
        other = max(v for j, v in enumerate(z) if j != y)
        assert value == pytest.approx(-(z[y] - other) / (leading[0] - leading[2]), rel=1e-9)
    wrong = LOGITS.argmax(1) != Y
    assert torch.equal(found > 0, wrong)
    assert (found >= -1 - 1e-9).all()


def test_targeted_dlr_is_equation_7():
    found = on_logits(fr.targeted_dlr, TARGET)({}, LOGITS, Y)
    rows = zip(LOGITS.tolist(), Y.tolist(), TARGET.tolist(), found.tolist(), strict=True)
    for z, y, t, value in rows:
        leading = sorted(z, reverse=True)
        divisor = leading[0] - 0.5 * (leading[2] + leading[3])
        assert value == pytest.approx(-(z[y] - z[t]) / divisor, rel=1e-9)


BOTH = {"dlr": on_logits(fr.dlr), "targeted": on_logits(fr.targeted_dlr, TARGET)}


@pytest.mark.parametrize("loss", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3, 1e6])
def test_value_and_slope_do_not_depend_on_the_logits_scale(loss, scale):
    """In float32 too, where cross-entropy's slope is rounding from 1e3 on."""
    slope = torch.func.grad(lambda z: loss({}, z, Y).sum())
    expected, exact = loss({}, LOGITS, Y), slope(LOGITS)
    z = (scale * LOGITS).float()
    assert torch.allclose(loss({}, z, Y).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(scale * slope(z).double(), exact, rtol=1e-2, atol=1e-2)


def test_too_few_classes_are_refused_with_what_to_use():
    for loss, least in ((on_logits(fr.dlr), 3), (on_logits(fr.targeted_dlr, TARGET), 4)):
        with pytest.raises(fr.FuncrobustError, match=rf"at least {least} classes.*log_odds"):
            loss({}, LOGITS[:, : least - 1], Y.clamp_max(1))
