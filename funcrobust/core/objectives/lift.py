r"""The lift: a composed loss becomes what an update differentiates.

A training objective is ``(params, buffers, *batch) -> (scalar, (buffers, metrics))``. `objective`
lifts a `Loss`, whose network is whatever it was built on. `training_objective` is for networks that
see the batch: training-mode batch norm has buffers that must come out, the one thing a `Loss`
cannot say, and this file is its one place. Everything else is the algebra:

    def compose(modes, batch):
        loss = fr.cross_entropy(modes.training)
        robust = fr.adversarial(loss, attack, start=batch.start)
        curvature = fr.cure(fr.cross_entropy(modes.batch), h=0.75)
        return {"loss": (1.0, robust), "curvature": (0.5, curvature)}

    objective = fr.training_objective(model, compose)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from funcrobust.core.arguments import is_tracked, require_loss
from funcrobust.core.derivatives.iteration import constant
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.losses import Loss, per_example_loss
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.core.shards import is_rows

Metrics = dict[str, Tensor]
"""Detached 0-dim tensors by name."""

TrainingObjective = Callable[..., tuple[Tensor, tuple[Buffers, Metrics]]]
"""``(params, buffers, *batch) -> (scalar, (buffers after the batch, metrics))``, pure."""


class Batch(NamedTuple):
    """What a training draws for an update; a pytree. Write your own if you need other parts.

    Every tensor but ``growth`` and ``key`` has one row an example, so that a batch can be cut.
    """

    x: Tensor
    """(B, …)."""
    y: Tensor
    """(B, …), such as int64 classes (B,)."""
    start: Tensor | None = None
    """Where the attack begins, x's shape."""
    points: Tensor | None = None
    """(B, k, …): k random points of the ball around each x."""
    noise: Tensor | None = None
    """x's shape, uniform in [−1, 1]."""
    mix: Tensor | None = None
    """(B,), uniform in [0, 1]."""
    growth: Tensor | float = 1.0
    """The share of its full strength that a schedule has reached."""
    restored: tuple[Tensor, Tensor] | None = None
    """Images, of the classes y, and what ψ is to restore them from; some first ones will do."""
    key: Tensor | None = None
    """What the masks of dropout and drop-path are drawn from: ``fr.key(seed, "dropout", step)``."""
    regularised: bool = True
    """Whether regularisers are due at this update: rationed, they come at some alone."""

    def first(self, n: int) -> Self:
        """Return the first ``n`` examples."""
        found: Self = cut(self, slice(n))
        return found


def cut(batch: Any, rows: slice) -> Any:
    """Take some examples of a batch, any pytree; keys, 0-dim tensors, numbers are for all."""
    return tree_map(lambda t: t[rows] if is_rows(t) else t, batch)


@dataclass(frozen=True)
class Modes:
    """A network in each of its modes, at one update.

    They differ in batch norm, in dropout, and in what a module of its own asks ``self.training``
    for (a test-time flip); where it has none of these all are the same.
    """

    training: Predict
    """The batch's own statistics. What a loss evaluates with the parameters that are trained, or
    with some made of them, moves the running statistics, evaluation by evaluation; what an attack
    evaluates, at constant ones, or a derivative, does not. (Compiled, and where no derivative is
    taken, the very tensors that the loss is given move them, and no others.)"""
    batch: Predict
    """The same values, and nothing moves: with derivatives of every order, for regularisers. In
    ``training`` torch's own batch norm is the faster one for a first derivative."""
    running: Predict
    """Evaluation mode, at the statistics before the update."""
    held: Predict
    """At the batch's statistics as ``training`` last saw them, held constant; needs it to have been
    evaluated by an earlier term. The variance is the unbiased one, as running statistics have it:
    larger by n/(n − 1), n values a channel."""
    params: Params
    """The parameters, constant: what an attack perturbs with."""


Terms = Mapping[str, tuple[float | Tensor, Loss]]
"""Weights and losses by the names of their metrics. A weight is a number, or a 0-dim tensor."""


def objective(loss: Loss) -> TrainingObjective:
    """Lift any `Loss`: ``(params, buffers, x, y) -> (mean ℓ, (buffers, {"loss": mean ℓ}))``.

    The buffers stay as they are: this is the lift for networks without batch norm, and for
    evaluation mode (``model.predict``), as in fine-tuning.
    """
    require_loss(loss)

    def lifted(
        params: Params, buffers: Buffers, x: Tensor, y: Tensor
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        total = per_example_loss(loss(params, x, y), x).mean()
        return total, (buffers, {"loss": total.detach()})

    return lifted


def training_objective(
    model: Functional,
    compose: Callable[[Modes, Any], Terms],
    *,
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """Lift a composition over a network in training: ``(params, buffers, batch) -> ...``.

    ``compose(modes, batch)`` gives the terms for one `Batch` (or any batch with ``x`` and ``y``):

        L(θ) = Σ_name weight · mean term(θ, x, y)

    evaluated in their order. Metrics are each term's mean by its name; and, where the labels are
    classes, "accuracy" as `Modes.training` last classified (x̂, under an attack). ``dtype`` is
    `autocast`'s. Terms of weight 0 are not evaluated. The mean of a term is over as many examples
    as it gives (see `at`). A weight that is a tensor (a share of `Batch.growth`) multiplies its
    term whatever its value, which is not looked at: so it compiles, and changes without compiling
    again.

    Raises `FuncrobustError` for a number as weight that is negative or not finite, or where all of
    them are 0.
    """

    def lifted(
        params: Params, buffers: Buffers, batch: Any, *rest: Any
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        if rest:
            raise FuncrobustError("a training objective takes one batch: fr.Batch(x, y, start)")
        record = _Record(model, params, buffers, dtype, getattr(batch, "key", None))
        terms = _checked(compose(record.modes(), batch))
        total, metrics = None, {}
        for name, (weight, loss) in terms.items():
            number = _is_number(name, weight)
            if number and weight == 0:
                continue
            values = loss(params, batch.x, batch.y)
            metrics[name] = per_example_loss(values, values if values.ndim == 1 else batch.x).mean()
            term = metrics[name] if number and weight == 1 else weight * metrics[name]
            total = term if total is None else total + term
        if total is None:
            raise FuncrobustError("an objective needs at least one term of positive weight")
        metrics |= record.accuracy(batch.y)
        return total, (record.buffers, {name: m.detach() for name, m in metrics.items()})

    return lifted


def _is_number(name: str, weight: float | Tensor) -> bool:
    """Tell whether a weight may be looked at, as a tensor's value may not in a graph.

    Raises `FuncrobustError` for a bad number, and for a tensor of several.
    """
    called = f"the weight of {name}"
    if isinstance(weight, Tensor):
        if weight.ndim:
            raise FuncrobustError(
                f"{called} is one number, of 0 dimensions where it is a tensor, got one of shape "
                f"{tuple(weight.shape)}"
            )
        return False
    require_finite(called, weight)
    return True


def _checked(terms: Any) -> Terms:
    pairs = terms.values() if isinstance(terms, Mapping) else [None]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise FuncrobustError(
            'compose returns named, weighted losses, {"loss": (1.0, loss), "curvature": (0.5, c)}'
        )
    found: Terms = terms
    return found


class _Record:
    """Modes of one update; and what training mode has seen: buffers and logits, as they come out.

    Lives as long as one call of an objective, which is pure as seen from outside.
    """

    def __init__(
        self, model: Functional, params: Params, buffers: Buffers, dtype: torch.dtype | None,
        key: Tensor | None,
    ) -> None:  # fmt: skip
        self._model, self._params, self._dtype, self._key = model, params, dtype, key
        self._depth = _depth()
        self.buffers = self._before = buffers
        self._logits: Tensor | None = None

    def modes(self) -> Modes:
        before, model = self.buffers, self._model
        return Modes(
            training=autocast(self._training, self._dtype),
            batch=autocast(model.by_batch(before, key=self._key), self._dtype),
            running=autocast(model.with_buffers(before), self._dtype),
            held=autocast(self._held, self._dtype),
            params=constant(self._params),
        )

    def _training(self, params: Params, x: Tensor) -> Tensor:
        # As many transforms deep as the objective, so that it is no derivative's evaluation; and no
        # attack's, whose parameters are constant: these very ones, or some made of them that are
        # differentiated too (a weight perturbation, say).
        if _depth() != self._depth or not (self._are_trained(params) or _any_tracked(params)):
            return self._train(params, x)[0]
        self._before = self.buffers
        self._logits, self.buffers = self._train(params, x)
        return self._logits

    def _are_trained(self, params: Params) -> bool:
        # Not by the dict: whether two are one, torch 2.11's compiler cannot tell.
        return any(p is self._params.get(name) for name, p in params.items())

    def _train(self, params: Params, x: Tensor) -> tuple[Tensor, Buffers]:
        return self._model.predict_train(params, self.buffers, x, key=self._key)

    def _held(self, params: Params, x: Tensor) -> Tensor:
        if self._logits is None:
            raise FuncrobustError("held statistics need a term that evaluates modes.training first")
        own = self._model.batch_statistics(self._before, self.buffers)
        return self._model.with_buffers(own)(params, x)

    def accuracy(self, y: Tensor) -> Metrics:
        if self._logits is None or not isinstance(y, Tensor) or y.is_floating_point():
            return {}
        if y.shape != self._logits.shape[:-1] or self._logits.shape[-1] < 2:  # no classifier
            return {}
        return {"accuracy": (self._logits.argmax(-1) == y).float().mean()}


def _any_tracked(params: Params) -> bool:
    """Whether a derivative follows any of them; False to a compiler, which cannot tell."""
    return not torch.compiler.is_compiling() and any(map(is_tracked, params.values()))


def _depth() -> int:
    """How many ``torch.func`` transforms are at work; 0 to a compiler, which cannot count them."""
    if torch.compiler.is_compiling():
        return 0
    return torch._C._functorch.maybe_current_level() or 0
