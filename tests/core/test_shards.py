"""Two processes that share each batch, against one that has it whole: the same updates."""

from __future__ import annotations

import pytest
import torch
from sharing import derivatives, everything, spread, trained
from torch import nn
from two_processes import on_two

import funcrobust as fr
from funcrobust.core.network.functional import functionalize
from funcrobust.core.objectives.lift import Batch
from funcrobust.core.shards import Shard


@pytest.fixture(scope="module")
def both():
    """What each of two processes finds."""
    return on_two(everything)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(both, accumulate):
    """To 1e-9 in float64: parameters, running statistics, momentum, average, metrics."""
    alone, said = trained(Shard(), accumulate)
    assert not torch.equal(alone.buffers["body.1.running_mean"], torch.zeros(6).double())
    first, second = (found[f"trained {accumulate}"] for found in both)
    for state, metrics in (first, second):
        torch.testing.assert_close(state, alone, rtol=1e-9, atol=1e-9)
        # Accuracies are counted in float32.
        torch.testing.assert_close(metrics, said, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_spread_parameters_train_as_whole_ones(both, name):
    """And each of two keeps half of them, up to tensors of odd length; ψ runs with them."""
    alone, size = spread(Shard(), name)
    for found, kept in (each[f"spread {name}"] for each in both):
        # Adam divides by the root of a variance: where a gradient is 0, of its rounding.
        off = 1e-9 if name == "sgd" else 1e-5  # muon moves biases by Adam
        torch.testing.assert_close(found[:2], alone[:2], rtol=off, atol=off)
        torch.testing.assert_close(found[2], alone[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[3], alone[3], rtol=off, atol=off)
        assert 0.4 * size < kept < 0.6 * size
    assert sum(found[f"spread {name}"][1] for found in both) == size


def test_means_over_processes_differentiate_to_second_order(both):
    alone = derivatives(Shard())
    for found in both:
        torch.testing.assert_close(found["derivatives"], alone, rtol=1e-10, atol=1e-10)


def test_a_first_derivative_compiles(both):
    for found in both:
        eager, graph = found["compiled"]
        torch.testing.assert_close(graph, eager, rtol=1e-12, atol=1e-12)


def test_means_of_a_tree(monkeypatch):
    tree = {"a": torch.tensor(1.0), "b": [torch.ones(2, 3).double(), torch.full((2,), 3.0)]}
    assert Shard().mean_of_all(tree) is tree
    shard = Shard(0, 4, "")
    monkeypatch.setattr(Shard, "mean", lambda self, x: 2 * x)
    found = shard.mean_of_all(tree)
    torch.testing.assert_close(found, {"a": 2 * tree["a"], "b": [2 * t for t in tree["b"]]})


def test_rows():
    shards = [Shard(r, 3, "g") for r in range(3)]
    batch = Batch(torch.arange(9.0), torch.arange(9), growth=torch.tensor(0.5), key=fr.key(0, "k"))
    parts = [shard.rows(batch) for shard in shards]
    assert torch.equal(torch.stack([p.x for p in parts], 1).reshape(-1), batch.x)
    assert all(p.growth == 0.5 and torch.equal(p.key, batch.key) for p in parts)
    first = [shard.rows(batch).first(2) for shard in shards]
    assert sorted(torch.cat([p.y for p in first]).tolist()) == list(range(6)), "the first six"
    assert Shard().rows(batch) is batch
    with pytest.raises(fr.FuncrobustError, match="9 examples cannot be shared equally by 2"):
        Shard(0, 2, "g").rows(batch)
    wide = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    own = Shard(1, 2, "g").rows(wide)
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(own, wide[1::2])


def test_norms_that_cannot_be_shared():
    net = functionalize(nn.Sequential(nn.SyncBatchNorm(3)))
    assert net.across(Shard()) is net
    with pytest.raises(fr.FuncrobustError, match="0 is a SyncBatchNorm, whose statistics cannot"):
        net.across(Shard(0, 2, "g"))
