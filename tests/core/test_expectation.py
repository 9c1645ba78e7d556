"""A random network as the mean of its draws: a function, with the derivative of that mean."""

from __future__ import annotations

import pytest
import torch
from problems import largest
from torch import nn
from torch.func import grad, jvp, vmap

import funcrobust as fr


class Noisy(nn.Module):
    """Noise on the image, dropout left on, batch norm: all that an evaluation may meet."""

    def __init__(self, sigma=0.3):
        super().__init__()
        self.sigma = sigma
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x):
        z = self.features(x + self.sigma * torch.randn_like(x)).flatten(1)
        return self.head(nn.functional.dropout(z, 0.25, training=True))


KEYS = torch.stack([fr.key(0, "draws", k) for k in range(6)])
X = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fr.functionalize(Noisy().double())


def by_hand(model, params, x, keys=KEYS):
    """Image after image, draw after draw."""
    rows = [
        torch.stack(
            [model.with_buffers(model.buffers, key=k)(params, one[None])[0].softmax(-1)
             for k in keys]
        ).mean(0).log()
        for one in x
    ]  # fmt: skip
    return torch.stack(rows)


def test_it_is_the_mean_of_the_draws(model):
    found = fr.expectation(model, KEYS)(model.params, X)
    assert (found - by_hand(model, model.params, X)).abs().max() <= 1e-12


def test_it_is_a_function_of_the_image_alone(model):
    predict = fr.expectation(model, KEYS)
    whole = predict(model.params, X)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(predict(model.params, X), whole)
    assert (predict(model.params, X[3:5]) - whole[3:5]).abs().max() <= 1e-12
    assert (predict(model.params, X.flip(0)) - whole.flip(0)).abs().max() <= 1e-12


def test_other_keys_are_other_draws(model):
    one, other = (fr.expectation(model, keys)(model.params, X) for keys in (KEYS[:3], KEYS[3:]))
    assert (one - other).abs().amax(1).min() > 1e-6


def test_many_draws_come_near_to_the_mean_over_all(model):
    """Of 512 draws and of 512 others: closer than two of one draw are, by some √512."""
    keys = torch.stack([fr.key(1, "draws", k) for k in range(1024)])
    apart = [
        fr.expectation(model, a)(model.params, X).exp()
        - fr.expectation(model, b)(model.params, X).exp()
        for a, b in ((keys[:1], keys[512:513]), (keys[:512], keys[512:]))
    ]
    assert apart[1].square().mean() < apart[0].square().mean() / 50


def test_its_derivatives_are_those_of_the_mean(model):
    def summed(predict):
        return lambda params, x: fr.cross_entropy(predict)(params, x, Y).sum()

    ours = summed(fr.expectation(model, KEYS))
    theirs = summed(lambda params, x: by_hand(model, params, x))
    for at in (0, 1):
        found, wanted = (grad(f, argnums=at)(model.params, X) for f in (ours, theirs))
        pairs = [(found, wanted)] if at else [(found[k], wanted[k]) for k in wanted]
        assert largest(a - b for a, b in pairs) <= 1e-12
    direction = torch.cos(torch.arange(X.numel(), dtype=torch.float64)).reshape(X.shape)
    step = 1e-5
    _, slope = jvp(lambda x: ours(model.params, x), (X,), (direction,))
    ahead, behind = (ours(model.params, X + s * step * direction) for s in (1, -1))
    assert abs(float(slope - (ahead - behind) / (2 * step))) <= 1e-6 * (1 + abs(float(slope)))


def test_it_composes(model):
    """Under an attack, a regulariser of second order, and vmap over parameters."""
    loss = fr.cross_entropy(fr.expectation(model, KEYS[:2]))
    pgd = fr.pgd(loss, fr.linf(0.1), step_size=0.03, steps=4)
    x_hat = pgd(model.params, X, Y, center=X)
    assert (loss(model.params, x_hat, Y) > loss(model.params, X, Y)).all()
    curved = grad(fr.mean(fr.cure(loss, h=0.1)))(model.params, X, Y)
    assert all(value.isfinite().all() for value in curved.values())
    stacked = {name: torch.stack([p, 0.5 * p]) for name, p in model.params.items()}
    both = vmap(lambda params: fr.expectation(model, KEYS[:2])(params, X))(stacked)
    alone = fr.expectation(model, KEYS[:2])(model.params, X)
    assert (both[0] - alone).abs().max() <= 1e-12


def test_what_it_is_for(model):
    """PGD against a draw at each step finds less than PGD against the mean, judged alike."""
    predict, n = fr.expectation(model, KEYS), len(X)
    y = predict(model.params, X).argmax(1)
    ball, found = fr.linf(0.05), {}
    for name, seen in (("a draw", model.predict), ("the mean", predict)):
        pgd = fr.pgd(fr.log_odds(seen), ball, step_size=0.0125, steps=20)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x_hat = pgd(model.params, X, y, center=X)
        found[name] = float(fr.log_odds(predict)(model.params, x_hat, y).sum()) / n
    assert found["the mean"] > found["a draw"] + 1e-3


def test_bad_keys(model):
    for keys in (KEYS[0], KEYS[:0], torch.zeros(3, 4)):
        with pytest.raises(fr.FuncrobustError, match=r"keys are \(K, 2\)"):
            fr.expectation(model, keys)
