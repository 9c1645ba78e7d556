"""What the pages say of cost."""

from __future__ import annotations

import measured
import pytest
import torch

import funcrobust as fr


def test_arithmetic_is_that_of_the_matrix_products():
    """Of W (5, 4) and x (3, 4): a product is 2·3·4·5; a gradient in W takes it and one more."""
    w, x = torch.ones(5, 4), torch.ones(3, 4)
    with measured.Arithmetic() as forward:
        x @ w.T
    with measured.Arithmetic() as gradient:
        torch.func.grad(lambda w: (x @ w.T).square().sum())(w)
    assert (forward.total, gradient.total) == (120, 240)


def test_it_counts_a_gradient_inside_a_gradient():
    """∇ₓ‖xWᵀ‖² takes two products, its gradient in W two backward of each, less x's own."""
    w, x = torch.ones(5, 4), torch.ones(3, 4)

    def slope(w):
        return torch.func.grad(lambda x: (x @ w.T).square().sum())(x).square().sum()

    with measured.Arithmetic() as inner:
        slope(w)
    with measured.Arithmetic() as both:
        torch.func.grad(slope)(w)
    assert inner.total == 240
    assert both.total > 480


def test_a_loss_costs_as_much_as_itself_and_an_attack_is_added():
    ball = fr.linf(8 / 255)
    one, ten = (
        measured.arithmetic(
            lambda loss, start, k=k: fr.adversarial(loss, fr.pgd_k(ball, steps=k), start=start)
        )
        for k in (1, 10)
    )
    assert measured.arithmetic(lambda loss, _: loss) == 1
    twice = measured.arithmetic(lambda loss, _: fr.weighted_sum((1, loss), (1, loss)))
    assert twice == pytest.approx(2, rel=0.05)
    # Nine steps more, each a forward pass and a backward one to the images: two thirds of three.
    assert ten - one == pytest.approx(9 * 2 / 3, rel=0.05)


def test_a_table_is_markdown():
    assert measured.table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_results_are_read():
    assert measured.results("autoattack-amd-epyc-avx512-bf16")["examples"] == 100
