"""Dropout and its relatives: counted, pure, or refused."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from problems import largest_difference, make_problem
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

import funcrobust as fr
from funcrobust.core.network.draws import CountedDraws
from funcrobust.core.randomness import uniform
from funcrobust.core.shards import Shard

KEY = fr.key(0, "test")


class Call(nn.Module):
    """A module of one function of x and of whether it trains."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, self.training)


def hugging_face(x, training):
    """The drop-path of transformers (and of timm, in older versions)."""
    if not training:
        return x
    shape = (x.shape[0], *(1,) * (x.ndim - 1))
    return x / 0.75 * (0.75 + torch.rand(shape, dtype=x.dtype, device=x.device)).floor()


@cache
def kinds():
    """Networks that keep the mean and drop a quarter, and the shape of their masks."""
    import timm.layers
    import torchvision

    each, channels, rows = (64, 16, 6, 6), (64, 16, 1, 1), (64, 1, 1, 1)
    return {
        "Dropout": (nn.Dropout(0.25), each),
        "in place": (nn.Sequential(nn.ReLU(), nn.Dropout(0.25, inplace=True)), each),
        "F.dropout": (Call(lambda x, training: F.dropout(x, 0.25, training=training)), each),
        "torch.dropout": (Call(lambda x, training: torch.dropout(x, 0.25, training)), each),
        "Dropout2d": (nn.Dropout2d(0.25), channels),
        "F.dropout2d": (Call(lambda x, training: F.dropout2d(x, 0.25, training)), channels),
        "feature": (Call(lambda x, training: torch.feature_dropout(x, 0.25, training)), channels),
        "timm": (timm.layers.DropPath(0.25), rows),
        "torchvision": (torchvision.ops.StochasticDepth(0.25, "row"), rows),
        "whole batch": (torchvision.ops.StochasticDepth(0.25, "batch"), (1, 1, 1, 1)),
        "Hugging Face": (Call(hugging_face), rows),
    }


KINDS = [
    "Dropout", "in place", "F.dropout", "torch.dropout", "Dropout2d", "F.dropout2d", "feature",
    "timm", "torchvision", "whole batch", "Hugging Face",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_a_function_of_the_key(kind):
    module, shape = kinds()[kind]
    model, x = fr.functionalize(module), torch.ones(64, 16, 6, 6, dtype=torch.float64)

    def run(key):
        return model.predict_train({}, {}, x.clone(), key=key)[0]

    state = torch.get_rng_state()
    found = run(KEY)
    assert torch.equal(found, run(KEY))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    assert torch.equal(found, model.by_batch({}, key=KEY)({}, x.clone()))
    assert torch.equal(model.predict({}, x.clone()), x)
    cut = tuple(slice(0, n) for n in shape)
    drawn = found[cut]
    assert torch.equal(drawn.expand_as(found), found), "the mask is constant over the rest"
    assert ((drawn == 0) | ((drawn - 4 / 3).abs() < 1e-12)).all()
    kept = torch.stack([run(fr.key(i, "many"))[cut] for i in range(9)])
    share = float((kept > 0).double().mean())
    assert abs(share - 0.75) < 4 * (0.25 * 0.75 / kept.numel()) ** 0.5
    if kept[0].numel() > 1:
        assert not torch.equal(kept[0], kept[1])
    with pytest.raises(fr.FuncrobustError, match=r"key=fr\.key"):
        model.predict_train({}, {}, x.clone())


CHANNELS = {
    "dropout1d": (F.dropout1d, [(40, 30), (20, 30, 5)]),
    "dropout2d": (F.dropout2d, [(20, 30, 5), (20, 30, 5, 4)]),
    "dropout3d": (F.dropout3d, [(40, 5, 4, 3), (20, 30, 5, 4, 3)]),
    "feature": (torch.feature_dropout, [(20, 30), (20, 30, 5)]),
}


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name, (_, shapes) in CHANNELS.items() for shape in shapes]
)
def test_channels_are_what_torch_takes_for_them(name, shape, inplace):
    """With a batch and without: the dimensions over which a mask is constant are torch's."""
    drop, ones = CHANNELS[name][0], torch.ones(shape)
    options = {"inplace": True} if inplace and name != "feature" else {}

    def shared(mask):
        """The dimensions along which all are dropped or none."""
        return [i for i in range(mask.ndim) if (mask == mask.narrow(i, 0, 1)).all()]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = drop(ones.clone(), 0.5, True, **options)
    with CountedDraws(KEY, Shard()):
        ours = drop(ones.clone(), 0.5, True, **options)
    assert ours.shape == theirs.shape
    assert shared(ours) == shared(theirs)
    assert 0 < float((ours > 0).float().mean()) < 1


def network():
    problem = make_problem(dropout=0.5)
    model = problem.model

    def value(params, key, x):
        return model.by_batch(model.buffers, key=key)(params, x).sin().sum()

    def penalty(params, key, x):
        """A second derivative: of the size of an input gradient."""
        return grad(value, argnums=2)(params, key, x).square().sum()

    return problem, value, penalty


def test_the_derivative_holds_the_masks():
    """Against a network whose masks are constants, read off from the key."""
    problem, value, penalty = network()
    layers = problem.module.net
    hidden = torch.ones(4, 6, 4, 4, dtype=torch.float64)
    with CountedDraws(KEY, Shard()):
        mask = F.dropout(hidden, 0.5)

    def by_hand(params, x):
        z = F.conv2d(x, params["net.0.weight"], params["net.0.bias"], stride=2, padding=1)
        mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = (params[f"net.1.{n}"][:, None, None] for n in ("weight", "bias"))
        z = F.silu((z - mean) / (var + layers[1].eps).sqrt() * scale + shift) * mask
        return F.linear(z.flatten(1), params["net.5.weight"], params["net.5.bias"]).sin().sum()

    def penalty_by_hand(params, x):
        return grad(by_hand, argnums=1)(params, x).square().sum()

    for ours, expected in ((value, by_hand), (penalty, penalty_by_hand)):
        found = grad(ours)(problem.params, KEY, problem.x)
        assert largest_difference(found, grad(expected)(problem.params, problem.x)) <= 1e-10


def test_vmap_over_keys_and_members():
    problem, _, penalty = network()
    keys = torch.stack([fr.key(i, "member") for i in range(3)])
    stacked = {k: torch.stack([p, 2 * p, 3 * p]) for k, p in problem.params.items()}

    def each(k, i):
        return {name: p[i] for name, p in k.items()}

    own = vmap(grad(penalty), (0, 0, None))(stacked, keys, problem.x)
    shared = vmap(grad(penalty), (0, None, None))(stacked, keys[0], problem.x)
    nested = vmap(vmap(grad(penalty), (None, 0, None)), (0, None, None))(stacked, keys, problem.x)
    for i in range(3):
        expected = grad(penalty)(each(stacked, i), keys[i], problem.x)
        assert largest_difference(each(own, i), expected) <= 1e-8  # of up to 7000
        assert largest_difference(each(each(nested, i), i), expected) <= 1e-8  # of up to 7000
        expected = grad(penalty)(each(stacked, i), keys[0], problem.x)
        assert largest_difference(each(shared, i), expected) <= 1e-8  # of up to 7000
    assert largest_difference(each(own, 1), each(shared, 1)) > 1e-3


def test_compiled_masks_are_the_same():
    """One graph; the key is an argument, so another key does not compile again."""
    problem, _, penalty = network()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(grad(penalty), fullgraph=True, backend=counter)
    for key in (KEY, fr.key(1, "test")):
        found = step(problem.params, key, problem.x)
        assert largest_difference(found, grad(penalty)(problem.params, key, problem.x)) <= 1e-10
    assert counter.frame_count == 1


def test_training_buffers_come_out_with_masks_drawn():
    problem = make_problem(dropout=0.5)
    run = problem.model.predict_train
    step = torch.compile(
        lambda key: run(problem.params, problem.model.buffers, problem.x, key=key),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    logits, after = step(KEY)
    expected, buffers = run(problem.params, problem.model.buffers, problem.x, key=KEY)
    assert (logits - expected).abs().max() <= 1e-12
    assert largest_difference(after, buffers) <= 1e-12


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("causal", ["no", "causal", "boolean", "added"])
def test_dropout_inside_attention(shared, causal):
    """Against the formula, with the mask that the key gives; without dropout, torch's kernel."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 6, generator=generator).double() for _ in range(3))
    if shared:
        k, v = k[:, :2], v[:, :2]
    added = torch.randn(5, 5, generator=generator).double()
    options = {
        "no": {}, "causal": {"is_causal": True}, "added": {"attn_mask": added},
        "boolean": {"attn_mask": (added > 0) | torch.eye(5, dtype=torch.bool)},
    }[causal] | {"enable_gqa": shared}  # fmt: skip

    def attend(p, values=v):
        with CountedDraws(KEY, Shard()):
            return F.scaled_dot_product_attention(q, k, values, dropout_p=p, **options)

    plain = F.scaled_dot_product_attention(q, k, v, **options)
    assert (attend(0.0) - plain).abs().max() <= 1e-12
    # Linear in the values: with the identity for them the output is the weights themselves.
    identity = torch.eye(5, 5).double().expand(2, k.shape[1], 5, 5)
    weights = F.scaled_dot_product_attention(q, k, identity, **options)
    with CountedDraws(KEY, Shard()):
        mask = F.dropout(torch.ones(2, 4, 5, 5).double(), 0.5)
    assert (attend(0.5, identity) - weights * mask).abs().max() <= 1e-12


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x)[0]


REFUSED = {
    "alpha_dropout": lambda p: nn.AlphaDropout(p),
    "feature_alpha_dropout": lambda p: nn.FeatureAlphaDropout(p),
    "multi_head": lambda p: Attending(nn.MultiheadAttention(4, 2, dropout=p)),
    "lstm": lambda p: nn.Sequential(nn.LSTM(4, 4, 2, dropout=p), Call(lambda x, _: x[0])),
    "gru": lambda p: nn.Sequential(nn.GRU(4, 4, 2, dropout=p), Call(lambda x, _: x[0])),
    "rrelu": lambda p: nn.RReLU() if p else nn.ReLU(),
    "exponential_": lambda p: Call(
        lambda x, t: x + x.new_empty(3, 5, 4).exponential_() if t and p else x
    ),
    "rrelu_": lambda p: Call(lambda x, t: torch.rrelu_(x + 0, training=t and p > 0)),
    "dropout_": lambda p: Call(lambda x, t: torch.dropout_(x + 0, p, t)),
    "native_dropout": lambda p: Call(lambda x, t: torch.native_dropout(x, p, t)[0]),
    "binomial": lambda p: Call(lambda x, t: torch.binomial(x, x / 2) if t and p else x),
    "_sample_dirichlet": lambda p: Call(
        lambda x, t: x * torch.distributions.Beta(1.0, 1.0).sample() if t and p else x
    ),
    "randperm": lambda p: Call(lambda x, t: x[torch.randperm(3)] if t and p else x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_counted_is_refused_where_it_would_draw(name):
    model, x = fr.functionalize(REFUSED[name](0.5)), torch.ones(3, 5, 4)
    with pytest.raises(fr.FuncrobustError, match=f"{name}.* not counted"):
        model.predict_train(model.params, model.buffers, x, key=KEY)
    assert model.predict(model.params, x).shape == (3, 5, 4)
    never = fr.functionalize(REFUSED[name](0.0))
    assert never.predict_train(never.params, never.buffers, x)[0].shape == (3, 5, 4)


def test_a_generator_of_the_networks_own_is_its_own_business():
    own = torch.Generator().manual_seed(0)
    noisy = Call(lambda x, _: x + torch.rand(3, generator=own) + x.bernoulli(generator=own))
    out, _ = fr.functionalize(noisy).predict_train({}, {}, torch.zeros(2, 3))
    assert (out >= 0).all()


def test_normal_numbers_as_torch_has_them():
    """Shapes, types, and a Kolmogorov–Smirnov test of each form of call."""
    x = torch.zeros(4000, dtype=torch.float64)
    with CountedDraws(KEY, Shard()):
        assert torch.randn((3, 2)).shape == torch.randn(size=(3, 2)).shape == (3, 2)
        drawn = {
            "new": torch.randn(4000), "like": torch.randn_like(x),
            "in place": x.clone().normal_(), "moved": (x.clone().normal_(2.0, std=0.5) - 2) / 0.5,
        }  # fmt: skip
    assert [z.dtype for z in drawn.values()] == [torch.float32, *[torch.float64] * 3]
    for name, z in drawn.items():
        assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-3, name
    for one, other in itertools.pairwise(drawn.values()):  # each its own numbers
        assert abs(float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])) < 0.08


def test_rand_and_bernoulli_as_torch_has_them():
    """Shapes, types and probabilities, in every form of call."""
    x = torch.full((2000,), 0.25, dtype=torch.float64)
    with CountedDraws(KEY, Shard()):
        forms = torch.rand(3, 2), torch.rand((3, 2)), torch.rand(size=(3, 2)), torch.rand([3, 2])
        for u in forms:
            assert u.shape == (3, 2)
            assert u.dtype == torch.float32
            assert ((u >= 0) & (u < 1)).all()
        assert torch.rand(3, dtype=torch.float64).dtype == torch.float64
        assert torch.rand_like(x).dtype == torch.float64
        drawn = {
            "probabilities": x.bernoulli(), "torch": torch.bernoulli(x), "p": x.bernoulli(0.25),
            "in place": x.clone().bernoulli_(0.25), "tensor": x.clone().bernoulli_(x),
        }  # fmt: skip
    for name, b in drawn.items():
        assert ((b == 0) | (b == 1)).all(), name
        assert abs(float(b.mean()) - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5, name


def test_masks_are_the_same_in_every_precision():
    """A compiled update is held against one in float64, which must drop what it drops."""
    masks = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        with CountedDraws(KEY, Shard()):
            masks.append(F.dropout(torch.ones(1000, dtype=dtype), 0.3) > 0)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_at_the_limits():
    everything = fr.functionalize(nn.Dropout(1.0))
    found, _ = everything.predict_train({}, {}, torch.ones(3, 3), key=KEY)
    assert torch.equal(found, torch.zeros(3, 3))
    nothing = fr.functionalize(nn.Dropout(0.0))
    assert torch.equal(nothing.predict_train({}, {}, torch.ones(3, 3))[0], torch.ones(3, 3))


def test_a_generator_will_do():
    model, x = fr.functionalize(nn.Dropout(0.5)), torch.ones(64, 3, 8, 8)

    def run(generator):
        return model.predict_train({}, {}, x, generator)[0]

    first, again, other = (run(fr.generator(seed, "dropout")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = fr.generator(0, "dropout")
    assert not torch.equal(run(generator), run(generator)), "it moves on"
    with pytest.raises(fr.FuncrobustError, match="one of them"):
        model.predict_train({}, {}, x, generator, key=KEY)


def test_keys_are_counted():
    keys = [fr.key(s, purpose, n) for s in (0, 1) for purpose in ("a", "b") for n in (0, 1)]
    assert len({tuple(k.tolist()) for k in keys}) == 8
    assert torch.equal(fr.key(1, "a", 1), fr.key(1, "a", 1))


def test_the_numbers_never_change():
    """Resumed runs rest on them, and on a part of torch that it does not promise to keep."""
    found = uniform(fr.key(0, "a"), 1, [4])
    assert found.dtype == torch.float32
    expected = [0.2748870849609375, 0.8259051442146301, 0.899786651134491, 0.06187093257904053]
    assert found.double().tolist() == expected
    assert torch.equal(uniform(fr.key(0, "a"), 1, [2, 2]).flatten(), found)


def test_complex_numbers_are_not_half_drawn():
    with CountedDraws(KEY, Shard()), pytest.raises(fr.FuncrobustError, match="two real ones"):
        torch.randn(3, dtype=torch.complex64)
