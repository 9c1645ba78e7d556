"""What the pages on choosing say of cost: read from benchmarks/results, or counted here.

Arithmetic is counted: the multiplications and additions of matrix products and convolutions, as
torch counts them. It does not depend on the machine, and says nothing of memory or of caches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import funcrobust as fr
from funcrobust import models

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


class Arithmetic(TorchDispatchMode):
    """Counts what happens inside it.

    Not torch's FlopCounterMode, whose hooks on modules fail where a gradient is taken inside a
    gradient (torch 2.15).
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Do it, and count it."""
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@cache
def _case() -> tuple[fr.Functional, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = fr.functionalize(models.build("preact-tiny"))
    draw = fr.generator(0, "arithmetic")
    return model, torch.rand(4, 3, 32, 32, generator=draw), torch.arange(4)


def arithmetic(build: Callable[[fr.Loss, torch.Tensor], fr.Loss]) -> float:
    """Return the arithmetic of a loss's gradient in θ, in that of cross-entropy's.

    ``build(loss, start)`` composes it from the cross-entropy of ``preact-tiny`` and a random point
    of the ball of 8/255 around each image.
    """
    model, x, y = _case()
    loss = fr.cross_entropy(model.predict)
    start = fr.linf(8 / 255).sample(x, fr.generator(0, "start"))

    def count(loss: fr.Loss) -> int:
        with Arithmetic() as seen:
            torch.func.grad(fr.mean(loss))(model.params, x, y)
        return seen.total

    return count(build(loss, start)) / count(loss)


def results(name: str) -> Any:
    """Return a file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def millions(name: str) -> str:
    """Return how many parameters a network of a name has, in millions."""
    with torch.device("meta"):
        network = models.build(name)
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
