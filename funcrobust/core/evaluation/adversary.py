"""What an evaluation runs against a classifier: one contract for every attack.

    adversary(predict, params, x, y, run) -> x̂

x (n, …) are images that are classified right, x̂ as many that the adversary hopes are not. Of a
targeted adversary y are the classes that x is not yet classified as, and x̂ shall be. Whether it
succeeded is not its to say: whoever runs it looks at x̂ itself (`ensemble`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from funcrobust.core.attacks import Attack
from funcrobust.core.balls.ball import Ball
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.evaluation.slopes import climbable
from funcrobust.core.examples import at_least_single, flat
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import generator, is_by_rows, row_generators

AT_ONCE = 250
"""Images that are looked at together, where nobody says how many: what a CPU is quick with."""


def ignore(_: int) -> None:
    """Take no notice of progress."""


class Run(NamedTuple):
    """How an adversary is to run, whichever it is."""

    numbers: Tensor
    """The examples' numbers (n,) in the whole set, of which every random number is a function: so
    it does not matter who else is in a batch, nor how many."""
    seed: int = 0
    purpose: str = "evaluate"
    batch_size: int = AT_ONCE
    advance: Callable[[int], object] = ignore
    """Told of every example done with, n in all."""

    def starts(
        self, draw: Callable[[Tensor, torch.Generator], Tensor], x: Tensor, numbers: Tensor,
        restart: int = 0,
    ) -> Tensor:  # fmt: skip
        """Draw a random start around each of x (m, …), the examples of ``numbers`` (m,).

        Every example has a generator of its own, so that its start is its alone. Those of a
        ``draw`` that is marked for it (``by_rows``) are drawn together, on the CPU; others one by
        one, on x's device.
        """
        purpose = self.purpose if restart == 0 else f"{self.purpose}/{restart}"
        if is_by_rows(draw):
            return draw(x, row_generators(self.seed, purpose, numbers))  # type: ignore[arg-type]
        drawn = [
            draw(one.unsqueeze(0), generator(self.seed, purpose, number, x.device))
            for one, number in zip(x, numbers.tolist(), strict=True)
        ]
        return torch.cat(drawn) if drawn else x


class Adversary(Protocol):
    """What an evaluation runs. Write your own: any such function.

    ``adversary(predict, params, x, y, run) -> x̂`` gets images x (n, …) that are classified right,
    their labels y (n,), and a `Run`, by which its random numbers are counted and what is done is
    told. Whether x̂ succeeds is not its to say: whoever runs it looks, see `attack_all`. Of a
    targeted adversary y are the classes that x is not yet seen as, and x̂ shall be.

    >>> import funcrobust as fr
    >>> from funcrobust.core import evaluation
    >>> def brighter(predict, params, x, y, run):
    ...     run.advance(len(x))
    ...     return fr.linf(8 / 255).project(x + 8 / 255, x)
    >>> def bright(params, x):  # class 1 from a mean of 0.27 on
    ...     return torch.stack([0.54 - x.mean(1), x.mean(1)], 1)
    >>> x, y = torch.tensor([[0.25] * 3, [0.1] * 3]), torch.tensor([0, 0])
    >>> evaluation.attack_all(bright, {}, x, y, {"brighter": brighter}).robust
    tensor([False,  True])
    """

    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        """Return x̂, shaped like x (n, …), floating-point."""
        ...


def succeeds(seen: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Tell where the classes ``seen`` (n,) are success: other than y, or ``targeted`` y itself."""
    return (seen == y) == targeted


def adversary_of(
    attack: Attack, loss: Callable[[Predict], Loss], *, restarts: int = 1, targeted: bool = False
) -> Adversary:
    """Let an `Attack`, as training takes it, be run by an evaluation; the worst restart counts.

    ``loss`` builds what it ascends, `log_odds` say; ``targeted`` it descends that, toward y.
    Raises `FuncrobustError` for what is no attack, or fewer than one of ``restarts``.
    """
    if not isinstance(attack, Attack):
        raise FuncrobustError(
            f"an Attack is wanted here, such as fr.pgd_k(ball), not a {type(attack).__name__}"
        )
    require_count("restarts", restarts, minimum=1)
    return _OfAttack(attack, loss, restarts, targeted)


@dataclass(frozen=True)
class _OfAttack:
    attack: Attack
    loss: Callable[[Predict], Loss]
    restarts: int
    targeted: bool

    @torch.no_grad()
    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        perturb = self.attack.perturb(self._climbed(predict))
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(run.batch_size):
            standing = rows
            for restart in range(self.restarts):
                here = x[standing]
                start = run.starts(self.attack.start, here, run.numbers[standing], restart)
                found[standing] = perturb(params, start, y[standing], center=here)
                seen = predict(params, found[standing]).argmax(-1)
                standing = standing[~succeeds(seen, y[standing], self.targeted)]
                if not len(standing):
                    break
            run.advance(len(rows))
        return found

    def _climbed(self, predict: Predict) -> Loss:
        loss = self.loss(predict)
        if not callable(loss):
            raise FuncrobustError(
                "adversary_of takes what builds a loss, fr.log_odds or fr.cross_entropy itself"
            )
        sign = -1.0 if self.targeted else 1.0
        return lambda params, x, y: sign * loss(params, climbable(x), y)


def inside(ball: Ball, x_hat: Tensor, center: Tensor, *, slack: float = 1e-6) -> Tensor:
    """Tell which of x̂ (n, …) lie in the ball around their centres, and in its bounds: (n,) bool.

    A point is inside if projecting it moves no number by more than ``slack``, in units of the data;
    or, in half precision, by more than a rounding of numbers near 1.
    """
    if x_hat.dtype.itemsize < 4:
        slack = torch.finfo(x_hat.dtype).eps
    x_hat, center = at_least_single(x_hat), at_least_single(center)
    moved = flat(ball.project(x_hat, center) - x_hat).abs().amax(1)
    return (moved <= slack) & flat(x_hat).isfinite().all(1)
