"""Attacks that seek the smallest perturbation, as adversaries: foolbox's, and our σ-zero.

FMN (Pintor et al. 2021, arXiv:2102.12827), DDN (Rony et al. 2019, arXiv:1811.09600) and DeepFool
(Moosavi-Dezfooli et al. 2016, arXiv:1511.04599) come from foolbox. They get our prediction
function, so that they run in its memory format and precision; global random state is left as it
was. What they return is looked at anew by whoever runs them: neither its class nor its norm is
taken from the library.

Two projections of foolbox 3.3.4 are replaced: FMN's onto an L2 ball divides a norm by itself and so
never projects, and its one onto k entries keeps k + 1 and fails where k is all of them. FMN's balls
are larger than it says by 10⁻⁴: where the network is linear its step ends on the boundary, and
whether it is ever seen beyond would hang on rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from funcrobust.core.errors import extra, require_count
from funcrobust.core.evaluation import Adversary, Run
from funcrobust.core.evaluation.sigma_zero import sigma_zero
from funcrobust.core.examples import flat
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import derive_seed
from funcrobust.running.minimum_norm_names import ATTACKS, CANDIDATES, passes


def minimum_norm_adversary(name: str, *, steps: int | None = None) -> Adversary:
    """Build one of `ATTACKS`; ``steps`` is its own number unless given.

    Raises `FuncrobustError` where it is foolbox's and foolbox is missing.
    """
    known = ATTACKS[name]
    count = known.steps if steps is None else steps
    require_count("steps", count, minimum=1)
    if known.foolbox is None:
        return sigma_zero(steps=count)
    attack = getattr(_module("attacks"), known.foolbox)(steps=count)
    if name in PROJECTIONS:
        attack.project = _projecting(PROJECTIONS[name])
    if name.startswith("fmn") and known.norm != "l0":
        attack.project = _wider(attack.project)
    if hasattr(attack, "candidates"):
        attack.candidates = CANDIDATES
    return _batched(attack, lambda classes: passes(name, count, classes))


def onto_l2(moved: Tensor, radius: Tensor) -> Tensor:
    """Return the nearest points of length at most ``radius`` (n,) to the rows (n, d)."""
    length = moved.norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)
    shrink: Tensor = (radius / length).clamp_max(1).unsqueeze(1)
    return moved * shrink


def onto_l0(moved: Tensor, count: Tensor) -> Tensor:
    """Keep of each row (n, d) the ``count`` (n,) largest entries, and 0 for the others."""
    rank = moved.abs().argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(rank < count.unsqueeze(1), moved, 0.0)


PROJECTIONS = {"fmn-l2": onto_l2, "fmn-l0": onto_l0}

WIDER = 1 + 1e-4
"""Of a ball's radius: what FMN's boundary step goes beyond the boundary, relatively."""


def _wider(project: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, x0, epsilon: project(x=x, x0=x0, epsilon=epsilon * WIDER)


def _projecting(onto: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    eagerpy = import_module("eagerpy")

    def project(x: Any, x0: Any, epsilon: Any) -> Any:
        moved = onto(flat(x.raw - x0.raw), epsilon.raw)
        return eagerpy.astensor(x0.raw + moved.view_as(x0.raw))

    return project


class _Network:
    """What foolbox takes for a model; counts how far an attack of ``bound`` passes is."""

    def __init__(self, predict: Predict, params: Params) -> None:
        self.bounds = _module("types").Bounds(0.0, 1.0)
        self._eagerpy = import_module("eagerpy")
        self._predict, self._params = predict, params
        self._passes, self._bound, self._images, self._told = 0, 1, 0, 0
        self._advance: Callable[[int], object] = lambda _: None

    def begin(self, bound: int, images: int, advance: Callable[[int], object]) -> None:
        self._passes, self._bound, self._images, self._told = 0, bound, images, 0
        self._advance = advance

    def __call__(self, inputs: Any) -> Any:
        x, restore = self._eagerpy.astensor_(inputs)
        logits = self._predict(self._params, x.raw).to(x.raw.dtype)
        self._passes += 1
        self.tell(self._images * min(self._passes, self._bound) // self._bound)
        return restore(self._eagerpy.astensor(logits))

    def tell(self, done: int) -> None:
        self._advance(done - self._told)
        self._told = done


def _batched(attack: Any, bound: Callable[[int], int]) -> Adversary:
    misclassified = _module("criteria").Misclassification

    def run_attack(predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        network = _Network(predict, params)
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            images = x[rows].contiguous()
            with torch.no_grad():
                classes = predict(params, images[:1]).shape[-1]
            network.begin(bound(classes), len(rows), run.advance)
            seed = derive_seed(run.seed, run.purpose, int(run.numbers[rows[0]]))
            devices = [x.device] if x.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.enable_grad():
                torch.manual_seed(seed)
                moved = attack.run(network, images, misclassified(y[rows])).detach().clamp(0, 1)
            network.tell(len(rows))
            finite = flat(moved.isfinite()).all(1)
            found[rows[finite]] = moved[finite]
        return found

    return run_attack


def _module(name: str) -> Any:
    with extra("minimum-norm", "FMN, DDN and DeepFool come from foolbox"):
        return import_module(f"foolbox.{name}")
