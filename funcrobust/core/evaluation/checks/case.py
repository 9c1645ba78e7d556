"""What a check is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.evaluation.adversaries import sharp_pgd
from funcrobust.core.evaluation.adversary import Adversary, succeeds
from funcrobust.core.evaluation.ensemble import Outcome, attack_all
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.randomness import generator

Severity = Literal["invalid", "suspicious", "upper bound"]
"""What an evaluation is at best if the check fails: see `verdict.verdict`."""


class Check(NamedTuple):
    """One check's answer."""

    name: str
    passed: bool | None
    """None: it could not be tried here, and ``figure`` says why."""
    figure: str
    """What was found, in a few words."""
    severity: Severity


@dataclass(frozen=True)
class Case:
    """An evaluation that was run: what was attacked, how, and what came of it."""

    predict: Predict
    params: Params
    x: Tensor
    """Clean images (N, …), floating-point."""
    y: Tensor
    ball: Ball
    outcome: Outcome
    numbers: Tensor | None = None
    """The examples' numbers (N,) that `attack_all` had, 0 … N−1 unless given."""
    seed: int = 0
    step_size: float = 2 / 255
    stronger: Adversary | None = None
    """What the check "effort" tries on those that withstood; None: nothing was given."""
    surrogate: tuple[Predict, Params] | None = None
    """Another network on the same images, whose adversarial images are tried."""
    few: int = 64
    """Examples that a costly check takes."""
    targeted: bool = False
    """Whether y are targets, and what falls is what is classified as them."""

    def some(self, which: Tensor | None = None) -> Tensor:
        """Return the places of at most ``few`` examples at random, or of those in ``which``."""
        places = torch.randperm(len(self.y), generator=generator(self.seed, "checks"))
        places = places.to(self.y.device)
        return (places if which is None else places[which[places]])[: self.few]

    def attacked(self, adversary: Adversary, places: Tensor) -> Outcome:
        """Run another adversary on the examples at ``places``."""
        return attack_all(
            self.predict, self.params, self.x[places], self.y[places],
            {"check": adversary}, numbers=self.number(places), seed=self.seed,
            targeted=self.targeted,
        )  # fmt: skip

    def number(self, places: Tensor) -> Tensor:
        """Return the numbers of the examples at ``places``."""
        return places if self.numbers is None else self.numbers[places]

    @property
    def steps(self) -> Adversary:
        """Twenty plain steps on the log-odds: what a check means by an attack."""
        return sharp_pgd(
            self.ball, step_size=self.step_size, sharpness=(20.0,), targeted=self.targeted
        )

    def fooled(self, seen: Tensor, places: Tensor) -> Tensor:
        """Tell where the classes ``seen`` of the examples at ``places`` are an attack's success."""
        return succeeds(seen, self.y[places], self.targeted)
