"""The adjoint's memory is flat in its steps: each costs the iterate that is kept, and no more."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.func import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import funcrobust as fr


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that still live, and the most there were.

    Below the transforms of torch.func, so that what they keep for their derivatives is counted.
    The same on every machine, as a process's own size is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return found

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.seen.pop(key)


def peak(problem, derivative: fr.Derivative, steps: int) -> float:
    """The most bytes alive during one ψ-gradient, in units of a batch of images."""
    psi = fr.psi(
        problem.loss, fr.l2(200.0), step_size=0.1, steps=steps, targeted=True,
        derivative=derivative,
    )  # fmt: skip
    with LiveBytes() as live:
        slope = grad(fr.mean(fr.drift(psi)))(problem.params, problem.x, problem.y)
    assert all(torch.isfinite(g).all() for g in slope.values())
    return live.peak / problem.x.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("derivative", "few", "many", "more"),
    [
        (fr.adjoint(), 5, 20, 15),  # an iterate a step,
        (
            fr.adjoint(),
            80,
            160,
            160,
        ),  # twice, while they go into one tensor: more than a step needs
        (fr.adjoint(every=0), 16, 36, 4),  # 2√n of them
        (fr.adjoint(kept=3), 5, 20, 15),  # beside three graphs, however many steps there are
        (fr.truncated(2), 5, 40, 0),
    ],
)
def test_what_a_step_costs(problem, derivative, few, many, more):
    grown = peak(problem, derivative, many) - peak(problem, derivative, few)
    assert grown == pytest.approx(more)


def test_a_graph_kept_costs_what_a_step_of_the_unrolled_does(problem):
    def of(kept):
        return peak(problem, fr.adjoint(kept=kept), 8)

    unrolled = peak(problem, fr.unrolled(), 5) - peak(problem, fr.unrolled(), 4)
    assert of(4) - of(3) == pytest.approx(unrolled, rel=0.1)


def test_unrolled_every_step_keeps_the_networks_own_values(problem):
    """The measurement can tell."""
    assert peak(problem, fr.unrolled(), 10) - peak(problem, fr.unrolled(), 5) > 5 * 10
