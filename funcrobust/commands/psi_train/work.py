"""A run of ``psi-train``, and what it is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.checkpoints import Card
from funcrobust.commands.psi_train.assemble import gaussian_starts, labels_for
from funcrobust.commands.psi_train.compose import STARTS, make_psi, threat_radius
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.linf import linf
from funcrobust.core.losses import DISTANCES, Loss
from funcrobust.core.network.functional import Functional, Predict
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.randomness import generator
from funcrobust.core.training.updates import State
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.dataset import first_of_each_class
from funcrobust.running.loop import Record
from funcrobust.running.measuring import evaluating, measure

FAR = 20
"""Steps that the pictures walk from noise: a few change an image too little to see."""


@dataclass(frozen=True)
class Work:
    """A run and all that it is measured by."""

    options: PsiTrain
    ball: Ball
    """ψ's."""
    model: Functional
    card: Card
    dataset: data.Dataset
    dtype: torch.dtype | None
    run: RunFolder
    reporter: Reporter

    def predict(self, state: State) -> Predict:
        """Predict in evaluation mode, at the run's precision."""
        return evaluating(self.model, state.buffers, self.dtype)

    def drift_of(self, predict: Predict) -> Loss:
        """The drift of the ψ document, from the images themselves."""
        distance = DISTANCES[self.options.distance]
        return drift(make_psi(self.options, self.ball, predict), distance=distance)

    @cached_property
    def heldout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Test images, their classes, and the labels that ψ moves them toward."""
        n = self.options.heldout_examples
        x, y = self.dataset.x_test[:n], self.dataset.y_test[:n]
        draw = generator(self.options.seed, "psi/heldout", 0, y.device)
        classes = self.dataset.num_classes
        return x, y, labels_for(y, self.options.label, classes, draw)

    def drift_and_clean(self, state: State) -> Record:
        """Held-out drift, and clean accuracy on the same images."""
        predict, (x, y, label) = self.predict(state), self.heldout
        params = network_of(state.params)
        return {
            "heldout_drift": evaluation.mean_of(self.drift_of(predict), params, x, label),
            "clean": float(evaluation.correct(predict, params, x, y).float().mean()),
        }

    def accuracies(self, state: State, when: str) -> dict[str, float]:
        """Clean and robust accuracy."""
        n, options = self.options.evaluate_examples, self.options
        return measure(
            self.predict(state), network_of(state.params), self.dataset.x_test[:n],
            self.dataset.y_test[:n], self.reporter, ball=linf(threat_radius(options)),
            steps=options.evaluate_steps, seed=options.seed,
            title=f"PGD-{options.evaluate_steps}, {when}",
        )  # fmt: skip

    def before(self) -> dict[str, float]:
        """Figures of the network given; measured once, and read back by a resumed run."""
        recorded = [r for r in self.run.metrics() if r["step"] == 0 and "clean_before" in r]
        if not recorded:
            measured = self.accuracies(self.initial, "before")
            first = {f"{name}_before": value for name, value in measured.items()}
            self.run.log({"epoch": 0, "step": 0, **self.drift_and_clean(self.initial), **first})
            recorded = [r for r in self.run.metrics() if r["step"] == 0]
        found = recorded[-1]
        return {
            "drift": found["heldout_drift"], "clean": found["clean_before"],
            "robust": found["robust_before"],
        }  # fmt: skip

    @property
    def initial(self) -> State:
        """The network given."""
        return State(
            self.model.params, self.model.buffers, None, torch.zeros((), dtype=torch.int64)
        )

    @cached_property
    def pictured(self) -> tuple[Tensor, Tensor, Tensor]:
        """A test image of each class, its class, and a Gaussian start of it."""
        x, y = first_of_each_class(self.dataset)
        draw = generator(self.options.seed, "psi/gaussian", 0, y.device)
        return x, y, gaussian_starts(self.dataset)(y, draw)

    def drawn(self, state: State) -> tuple[Tensor, Tensor]:
        """ψ of the pictured images, and a longer walk from their starts."""
        (x, y, starts), predict = self.pictured, self.predict(state)
        params, far = network_of(state.params), max(self.options.steps, FAR)
        with torch.no_grad():
            moved = make_psi(self.options, self.ball, predict)(params, x, y)
            return moved, make_psi(self.options, self.ball, predict, far)(params, starts, y)

    @cached_property
    def drawn_before(self) -> tuple[Tensor, Tensor]:
        """The same of the network given: one for all strips."""
        return self.drawn(self.initial)


def network_of(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out learned start images."""
    return {name: p for name, p in params.items() if name != STARTS}
