"""Networks with slopes and logits that are no numbers: they must not look robust for it."""

from __future__ import annotations

import pytest
import torch

import funcrobust as fr
from funcrobust.core import evaluation
from funcrobust.core.evaluation.checks import Case
from funcrobust.core.evaluation.checks.network import alone, deterministic, gradients
from funcrobust.core.evaluation.checks.network import logits as are_logits
from funcrobust.core.losses import spread_of

L2, LINF = fr.l2(1.0), fr.linf(0.5)


def root(times):
    """Two classes by the sum of three numbers; the first, 0, has an infinite slope, or NaN's."""

    def predict(_params, x):
        z = (x[:, :1].sqrt() * times).sum(1) + x[:, 1:].sum(1) - 1.4
        return torch.stack([z, -z], 1)

    return predict


def images():
    x = torch.rand(50, 4, generator=fr.generator(0, "roots"), dtype=torch.float64) * 0.2 + 0.3
    x[:, 0] = 0.0
    return x


def standing(predict, x, adversary):
    y = predict({}, x).argmax(1)
    return int(evaluation.attack_all(predict, {}, x, y, {"it": adversary}).robust.sum())


def from_images(attack):
    return fr.Attack(lambda center, _: center, attack.perturb)


@pytest.mark.parametrize("times", [0.0, 1.0], ids=["NaN", "infinite"])
@pytest.mark.parametrize("ball", [L2, LINF], ids=["l2", "linf"])
@pytest.mark.parametrize(
    "adversary",
    [
        lambda ball: evaluation.adversary_of(fr.pgd_k(ball), fr.log_odds),
        lambda ball: evaluation.adversary_of(fr.apgd_k(ball), fr.log_odds),
        lambda ball: evaluation.Pgd(ball, 0.25),
        lambda ball: evaluation.sharp_pgd(ball, step_size=0.25),
        lambda ball: evaluation.apgd_adversary(ball, steps=10),
        lambda ball: evaluation.targeted_fab(ball, steps=10),
    ],
    ids=["pgd_k", "apgd_k", "Pgd", "sharp", "apgd", "fab"],
)
def test_one_slope_that_is_no_number_does_not_make_robust(adversary, ball, times):
    """All of the images are fooled by the other three numbers."""
    assert standing(root(times), images(), adversary(ball)) == 0


@pytest.mark.parametrize("ball", [L2, LINF], ids=["l2", "linf"])
@pytest.mark.parametrize("attack", [fr.pgd_k, fr.apgd_k, fr.rs_fgsm])
def test_nor_does_a_start_at_the_images(attack, ball):
    """Where every one of them has the NaN."""
    adversary = evaluation.adversary_of(from_images(attack(ball)), fr.log_odds)
    assert standing(root(0.0), images(), adversary) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinite_slope_has_a_finite_norm(dtype):
    from funcrobust.core.evaluation.slopes import usable

    gradient = torch.full((2, 3, 32, 32), torch.inf, dtype=dtype)
    gradient[0, 0, 0, 0] = torch.nan
    found = usable(gradient)
    assert found.isfinite().all()
    assert found.float().flatten(1).norm(dim=1).isfinite().all()
    assert L2.steepest(found).isfinite().all()


def test_an_image_is_climbed_as_it_is():
    x = torch.rand(2, 3, dtype=torch.float64)
    from funcrobust.core.evaluation.slopes import climbable

    def cube(x):
        return (climbable(x) ** 3).sum()

    assert torch.equal(climbable(x), x)
    assert torch.allclose(torch.func.grad(cube)(x), 3 * x**2)
    each = torch.func.vmap(torch.func.grad(cube))(x)
    assert torch.allclose(each, 3 * x**2)


def case_of(predict, x):
    y = predict({}, x).argmax(1)
    kept = torch.full_like(y, -1)
    return Case(predict, {}, x, y, L2, evaluation.Outcome(kept, x, y), y)


@pytest.mark.parametrize("times", [0.0, 1.0], ids=["NaN", "infinite"])
def test_the_check_of_gradients_sees_it(times):
    check = gradients(case_of(root(times), images()))
    assert check.passed is False
    assert "50 of 50 are 0, or not finite" in check.figure


def masked(_params, x):
    """Three classes, of which the last cannot be."""
    hidden = torch.full((len(x), 1), -torch.inf, dtype=x.dtype)
    return torch.cat([10 * x, hidden], 1)


def test_a_masked_class_hides_nothing():
    x = torch.rand(200, 2, generator=fr.generator(0, "masked")) * 0.2 + 0.4
    ball = fr.linf(0.11)
    sharp = evaluation.sharp_pgd(ball, step_size=0.03)
    assert standing(masked, x, sharp) == standing(lambda p, x: 10 * x, x, sharp) == 0
    case = case_of(masked, x)
    for check in (deterministic, alone, are_logits, gradients):
        assert check(case).passed, check(case).figure


def test_the_spread_is_of_the_classes_that_are_there():
    z = torch.randn(5, 6, generator=fr.generator(0, "spread"))
    assert torch.allclose(spread_of(z), z.std(-1))
    hidden = z.clone()
    hidden[:, [1, 4]] = -torch.inf
    assert torch.allclose(spread_of(hidden), z[:, [0, 2, 3, 5]].std(-1))
    hidden[0, 1:] = -torch.inf
    assert spread_of(hidden)[0] == 0
    assert not spread_of(torch.zeros(2, 3)).any()


def test_square_goes_on_from_a_tie():
    """Equal logits are seen as the first class, y: an image that ends so is not fooled yet."""

    def steps(_params, x):
        z = ((x.mean((1, 2, 3)) - 0.45) * 40).floor() / 2
        return torch.stack([z, torch.zeros_like(z)], 1)

    assert standing(steps, torch.full((20, 1, 8, 8), 0.5), evaluation.square(fr.linf(0.1))) == 0


def test_an_infinite_slope_in_half_precision_is_the_largest_of_all():
    """float16 ends at 65504; its norms are summed in float32, so there is room for that."""
    from funcrobust.core.evaluation.slopes import usable

    gradient = torch.zeros(1, 3072, dtype=torch.float16)
    gradient[0, :3] = torch.tensor([torch.inf, 1000.0, -5.0])
    found = usable(gradient)
    assert found[0, 0] == torch.finfo(torch.float16).max
    assert found.float().norm().isfinite()
    assert torch.equal(found[0, 1:], gradient[0, 1:])


@pytest.mark.parametrize("way", ["jvp", "hessian"])
def test_an_attack_may_differentiate_forward(way):
    """It climbs what `evaluation.adversary_of` gives it by whatever derivative it likes."""

    def perturb(loss):
        def along(params, start, y, *, center=None):
            del center

            def value(x):
                return loss(params, x, y).sum()

            if way == "jvp":
                _, slope = torch.func.jvp(value, (start,), (torch.ones_like(start),))
            else:
                slope = torch.func.hessian(value)(start).sum()
            return start + 0.1 * slope.sign()

        return along

    x = torch.tensor([[0.2, 0.4], [0.5, 0.9]])
    attack = fr.Attack(lambda x, _: x, perturb)
    seen = evaluation.attack_all(
        lambda p, x: torch.stack([0.5 * x.square().sum(1), x.sum(1).exp()], 1), {}, x,
        torch.tensor([1, 1]), {"own": evaluation.adversary_of(attack, fr.log_odds)},
    )  # fmt: skip
    assert seen.images.isfinite().all()
