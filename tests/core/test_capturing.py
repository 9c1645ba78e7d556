"""The replay of a recorded update, with a recorder that needs no GPU: it calls again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import funcrobust as fr


def recorder(call):
    """What a CUDA graph does: the same call on the same memory, outputs in the same place."""
    outputs = call()

    def replay():
        for old, new in zip(tree_leaves(outputs), tree_leaves(call()), strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)

    return outputs, replay


def training(optimizer="SGD"):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    model = fr.functionalize(module)
    attack = fr.rs_fgsm(fr.linf(8 / 255))

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        return {"loss": (1.0, fr.adversarial(loss, attack, start=batch.start))}

    optim = fr.optimizer(optimizer, fr.schedule("cyclic", lr_max=0.1, total_steps=8))
    update = fr.make_update(fr.training_objective(model, compose), optim, decay=0.9)
    return update, fr.initial_state(model, optim, averaged=True)


def batch(number, size=6):
    draw = torch.Generator().manual_seed(number)
    x = torch.rand((size, 3, 8, 8), generator=draw)
    return fr.Batch(x, torch.randint(5, (size,), generator=draw), x.clone())


def alike(a, b):
    return all(
        torch.equal(left, right)
        for left, right in zip(tree_leaves(a), tree_leaves(b), strict=True)
        if isinstance(left, torch.Tensor)
    )


@pytest.mark.parametrize("optimizer", ["SGD", "adamw", "muon"])
def test_replays_are_the_updates(optimizer):
    update, state = training(optimizer)
    replay = fr.capture_checked(update, state, batch(0), recorder=recorder)
    eager, replayed = state, state
    for number in range(1, 5):
        eager, told = update(eager, batch(number))
        replayed, said = replay(replayed, batch(number))
        assert alike(eager, replayed)
        assert alike(told, said)
    assert int(replayed.step) == 4
    assert replayed.step.device.type == "cpu"


def test_what_is_returned_is_kept_by_the_next_replay():
    update, state = training()
    replay = fr.capture_checked(update, state, batch(0), recorder=recorder)
    first, told = replay(state, batch(1))
    kept = [t.clone() for t in tree_leaves((first, told)) if isinstance(t, torch.Tensor)]
    second, _ = replay(first, batch(2))
    assert alike(kept, [t for t in tree_leaves((first, told)) if isinstance(t, torch.Tensor)])
    assert not alike(first, second)
    again, _ = replay(first, batch(2))
    assert alike(second, again)
    assert int(state.step) == 0


class Reading:
    """An update that reads its count on the CPU, as a graph would have recorded it: once."""

    def __init__(self, update, use):
        self.update, self.use, self.recorded = update, use, None

    def __call__(self, state, given):
        number = int(state.step) if self.recorded is None else self.recorded
        after, metrics = self.update(state, given)
        return self.use(number, state, after, metrics)

    def record(self, call):
        """Replays see the number that was read while recording; the eager update reads its own."""
        outputs = call()
        number = 0

        def replay():
            self.recorded = number
            again = call()
            self.recorded = None
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                old.copy_(new)

        return outputs, replay


def slower(number, state, after, metrics):
    share = 1 / (1 + number)
    moved = {name: p + share * (after.params[name] - p) for name, p in state.params.items()}
    return after._replace(params=moved), metrics


def told(number, state, after, metrics):
    return after, {**metrics, "rate": torch.full((), 1.0 / (1 + number))}


@pytest.mark.parametrize(
    ("use", "message"),
    [(slower, "off by .* of the change in .params"), (told, "off in the metric rate, .* still 1")],
)
def test_a_number_that_a_graph_would_not_see_change_is_found(use, message):
    """The count of updates, read on the CPU: in a graph it is the recorded one."""
    update, state = training()
    reading = Reading(update, use)
    assert fr.capture_checked(reading, state, batch(0), recorder=recorder)
    with pytest.raises(fr.FuncrobustError, match=message):
        fr.capture_checked(reading, state, batch(0), recorder=reading.record)


def test_a_count_that_stays_is_found():
    update, state = training()

    def counting(state, given):
        after, metrics = update(state, given)
        return after._replace(step=state.step + 2), metrics

    with pytest.raises(fr.FuncrobustError, match=r"off in .step, 5 where it is 6"):
        fr.capture_checked(counting, state, batch(0), recorder=recorder)


def test_a_replay_nests_under_no_transform():
    update, state = training()
    replay = fr.capture_checked(update, state, batch(0), recorder=recorder)

    def loss(params):
        return replay(state._replace(params=params), batch(1))[1]["loss"]

    with pytest.raises(fr.FuncrobustError, match="nests under no transform"):
        torch.func.grad(loss)(state.params)


def test_other_shapes_parts_and_flags_are_refused():
    update, state = training()
    replay = fr.capture_checked(update, state, batch(0), recorder=recorder)
    with pytest.raises(fr.FuncrobustError, match=r"recorded with: \(6, 3, 8, 8\).*\(5, 3, 8, 8\)"):
        replay(state, batch(1, size=5))
    with pytest.raises(fr.FuncrobustError, match="recorded with True, got False"):
        replay(state, batch(1)._replace(regularised=False))
    with pytest.raises(fr.FuncrobustError, match="of the parts recorded"):
        replay(state._replace(average={}), batch(1))
    with pytest.raises(fr.FuncrobustError, match="recorded with"):
        replay(state, batch(1)._replace(growth=torch.tensor(0.5)))


def test_what_a_graph_would_not_write_is_refused():
    """A metric on another device would be returned as it was recorded, every time."""
    update, state = training()

    def told(state, given):
        after, metrics = update(state, given)
        return after, {**metrics, "rate": torch.empty((), device="meta")}

    with pytest.raises(fr.FuncrobustError, match="returns a tensor on meta"):
        fr.capture_checked(told, state, batch(0), recorder=lambda call: (call(), lambda: None))


def test_weights_that_require_a_gradient_are_copied_all_the_same():
    update, state = training()
    replay = fr.capture_checked(update, state, batch(0), recorder=recorder)
    asking = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    found, _ = replay(state._replace(params=asking), batch(1))
    assert alike(found, update(state, batch(1))[0])
    assert not any(p.requires_grad for p in found.params.values())


def test_a_state_that_is_not_on_cuda_is_refused():
    update, state = training()
    with pytest.raises(fr.FuncrobustError, match="this state is on cpu"):
        fr.capture_checked(update, state, batch(0))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are CUDA's")


def on_cuda(tree):
    return tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf, tree)


def training_on_cuda(optimizer="SGD"):
    update, state = training(optimizer)
    return update, on_cuda(state)._replace(step=state.step)


def same_way(update, state, replay, numbers):
    """Updates, and their replays, from one state through the same batches."""
    eager = replayed = state
    for number in numbers:
        given = on_cuda(batch(number))
        eager, _ = update(eager, given)
        replayed, _ = replay(replayed, given)
    return all(
        torch.allclose(p, replayed.params[name], atol=1e-5) for name, p in eager.params.items()
    )


@cuda
@pytest.mark.parametrize("optimizer", ["SGD", "muon"])
def test_a_cuda_graph_replays_the_update(optimizer):
    update, state = training_on_cuda(optimizer)
    replay = fr.capture_checked(update, state, on_cuda(batch(0)))
    assert same_way(update, state, replay, (1, 2))


@cuda
def test_after_a_capture_that_fails_all_goes_on():
    """The eager update, the allocator, the next capture: none notices."""
    update, state = training_on_cuda()

    def waiting(state, given):
        after, metrics = update(state, given)
        return after, {**metrics, "rate": torch.full((), float(metrics["loss"]), device="cuda")}

    stream = torch.cuda.current_stream()
    with pytest.raises((RuntimeError, fr.FuncrobustError)):
        fr.capture_checked(waiting, state, on_cuda(batch(0)))
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert same_way(update, state, update, (1, 2))
    replay = fr.capture_checked(update, state, on_cuda(batch(0)))
    assert same_way(update, state, replay, (3, 4))
