"""A run of ``psi-train``, and what it is measured by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from funcrobust import data
from funcrobust.checkpoints import Card
from funcrobust.commands.psi_train.assemble import labels_for
from funcrobust.commands.psi_train.compose import STARTS, make_psi, threat_radius
from funcrobust.commands.psi_train.options import PsiTrain
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.linf import linf
from funcrobust.core.degrading import gaussian_noise
from funcrobust.core.losses import DISTANCES, Loss
from funcrobust.core.network.functional import Functional, Params, Predict
from funcrobust.core.objectives.algebra import drift
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.perturbations.sampling import part_of_the_way
from funcrobust.core.randomness import generator
from funcrobust.core.tasks import psnr
from funcrobust.core.training.updates import State, averaged
from funcrobust.report.console import Reporter
from funcrobust.report.records import shortest
from funcrobust.report.runs import RunFolder
from funcrobust.running.collapse import Figures
from funcrobust.running.dataset import Chosen, chosen_test_images, first_of_each_class
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.restoring import gaussian_starts

NOISE = 0.2
"""Standard deviation of the noise that ψ is to remove from held-out images."""
FAR = 20
"""Steps that the pictures walk from noise: a few change an image too little to see."""


@dataclass(frozen=True)
class Work:
    """A run and all that it is measured by."""

    options: PsiTrain
    begun: str
    """The checkpoint that it began from."""
    ball: Ball
    """ψ's."""
    model: Functional
    card: Card
    dataset: data.Dataset
    dtype: torch.dtype | None
    run: RunFolder
    reporter: Reporter

    def network(self, state: State) -> tuple[Predict, Params]:
        """Return what predicts in evaluation mode, at the run's precision: the average if kept."""
        params, buffers = averaged(state)
        return evaluating(self.model, buffers, self.dtype), network_of(params)

    def drift_of(self, predict: Predict) -> Loss:
        """The drift of the ψ document, from the images themselves."""
        distance = DISTANCES[self.options.distance]
        return drift(make_psi(self.options, self.ball, predict), distance=distance)

    @cached_property
    def heldout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Test images at random, their classes, and the labels that ψ moves them toward."""
        n = self.options.heldout_examples
        _, x, y = chosen_test_images(self.dataset, n, self.options.seed)
        draw = generator(self.options.seed, "psi/heldout", 0, y.device)
        classes = self.dataset.num_classes
        return x, y, labels_for(y, self.options.label, classes, draw)

    @cached_property
    def degraded(self) -> Tensor:
        """The held-out images with noise of standard deviation `NOISE`."""
        x = data.as_float(self.heldout[0])
        draw = generator(self.options.seed, "psi/degraded", 0, x.device)
        return gaussian_noise(NOISE, NOISE)(x, self.heldout[1], draw)

    def restored(self, state: State) -> float:
        """PSNR in dB of the held-out images that ψ makes of the degraded ones."""
        predict, params = self.network(state)
        psi, (x, y, _) = make_psi(self.options, self.ball, predict), self.heldout
        with torch.no_grad():
            parts = zip(self.degraded.split(128), y.split(128), strict=True)
            made = torch.cat([psi(params, s, label) for s, label in parts]).clamp(0, 1)
        return psnr(made, data.as_float(x))

    def drift_and_clean(self, state: State) -> Figures:
        """Held-out drift, clean accuracy on the same images, how well ψ restores if it is to."""
        (predict, params), (x, y, label) = self.network(state), self.heldout
        restored = {"restored": self.restored(state)} if self.options.restore else {}
        return {
            "heldout_drift": evaluation.mean_of(self.drift_of(predict), params, x, label),
            "clean": float(evaluation.correct(predict, params, x, y).float().mean()),
        } | restored

    @cached_property
    def evaluated(self) -> Chosen:
        """The test images of the accuracies, at random."""
        return chosen_test_images(self.dataset, self.options.evaluate_examples, self.options.seed)

    def accuracies(self, state: State, when: str) -> dict[str, float]:
        """Clean and robust accuracy, under PGD and under sharp PGD after it."""
        options, steps = self.options, self.options.evaluate_steps
        return measure(
            *self.network(state), self.evaluated, self.reporter,
            ball=linf(threat_radius(options)), steps=steps, seed=options.seed,
            title=f"PGD-{steps} and sharp PGD-{steps}, {when}",
        )  # fmt: skip

    def figures(self, state: State, when: str) -> dict[str, float]:
        """Drift, how well ψ restores if it is to, clean and robust accuracy."""
        found = self.drift_and_clean(state)
        restored = {"restored": found["restored"]} if "restored" in found else {}
        return {"drift": found["heldout_drift"]} | restored | self.accuracies(state, when)

    def before(self) -> dict[str, float]:
        """Figures of the network given; measured once, and read back by a resumed run."""
        suffix = "_before"
        recorded = [r for r in self.run.metrics() if r["step"] == 0 and f"worst{suffix}" in r]
        if recorded:
            first = recorded[-1]
        else:
            measured = self.figures(self.initial, "before")
            first = {f"{name}{suffix}": value for name, value in measured.items()}
            at_0 = {"heldout_drift": measured["drift"], "clean": measured["clean"]}
            self.run.log({"epoch": 0, "step": 0, **at_0, **first})
            first = shortest(first)  # as a resumed run reads it
        return {k.removesuffix(suffix): v for k, v in first.items() if k.endswith(suffix)}

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
        (x, y, starts), (predict, params) = self.pictured, self.network(state)
        with torch.no_grad():
            moved = make_psi(self.options, self.ball, predict)(params, x, y)
            return moved.clamp(0, 1), self.drawing(predict)(params, starts, y).clamp(0, 1)

    def drawing(self, predict: Predict) -> Perturbation:
        """Build the walk that draws from noise: ψ in more steps, and for gradient steps shorter."""
        options, far = self.options, max(self.options.steps, FAR)
        if options.constraint == "unconstrained" and options.step_size is not None:
            options = replace(options, step_size=part_of_the_way(far) * options.step_size)
        return make_psi(options, self.ball, predict, far)

    @cached_property
    def drawn_before(self) -> tuple[Tensor, Tensor]:
        """The same of the network given: one for all strips."""
        return self.drawn(self.initial)


def network_of(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out learned start images."""
    return {name: p for name, p in params.items() if name != STARTS}
