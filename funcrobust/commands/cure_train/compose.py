"""From ``cure-train``'s options to the algebra: the attack, the composed terms, what they draw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import funcrobust as fr
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.core.attacks import fixed, from_images
from funcrobust.core.errors import FuncrobustError
from funcrobust.running.catalogue import attacks, parameters
from funcrobust.running.restoring import carried, fitting_step

PAPER_H = (0.1, 0.4, 0.8, 1.8, 3.0)
"""The h of the CURE paper's five stages (section 5), as published."""


def training_attack(options: CureTrain, ball: fr.Ball) -> fr.Attack | None:
    """Build the attack of ``--attack``: the public function so called, on the options it takes."""
    if options.attack == "none":
        return None
    attack: fr.Attack = attacks()[options.attack].called(ball=ball, **parameters(options))
    return from_images(attack) if options.delta_init == "zero" else attack


@dataclass(frozen=True)
class Composition:
    """``compose(modes, batch)``: fast adversarial training with CURE and its relatives.

        x̂ = attack(θ, start, y; centre x)                                held constant
        L(θ) = mean ℓ(θ, x̂, y) + λ · mean ‖∇ₓℓ(θ, x + z, y) − ∇ₓℓ(θ, x, y)‖₂ + …

    ``scale`` turns the options' units of h and λ into pixels. Regularisers at every k-th update are
    k times as heavy; a batch that is not ``regularised`` has none.
    """

    options: CureTrain
    ball: fr.Ball
    attack: fr.Attack | None
    scale: float = 1.0
    helper_labels: Callable[[Tensor], Tensor] | None = None
    parameters: Mapping[str, frozenset[str]] = field(init=False)
    """What each regulariser takes: looked up once, since no compiler traces a look at a signature.
    """

    def __post_init__(self) -> None:
        found = {
            name: frozenset(inspect.signature(_regulariser(name)).parameters)
            for name in self.options.regularisers
        }
        object.__setattr__(self, "parameters", found)

    def __call__(self, modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        """Compose the terms of one update."""
        perturb = self.perturbation(modes, batch)
        x_hat = batch.x
        if perturb is not None and batch.regularised and self.needs_x_hat:
            # Once, for all that look at it.
            x_hat = perturb(modes.params, _start(batch), batch.y, center=batch.x).detach()
            perturb = fixed(x_hat)
        terms: dict[str, tuple[float, fr.Loss]] = {"loss": (1.0, self.fit(modes, batch, perturb))}
        if not batch.regularised:
            return terms
        n = carried(self.options.cure_fraction, len(batch.x))
        part, options = batch.first(n), self.options
        terms |= {
            "curvature": self.curvature(modes, part, x_hat[:n]),
            "clean_loss": (options.kappa, fr.cross_entropy(modes.batch)),
            "helper": (options.hat, self.helper(modes, x_hat[:n])),
        }
        if part.restored is not None:
            terms["restoration"] = (options.restore, self.restoration(modes, part))
        for name, weight in options.regularisers.items():
            terms[name] = (weight, self.regulariser(name, modes, part))
        first = terms.pop("loss")
        cycle = options.cycle
        rest = {k: (cycle * w, fr.at(loss, part.x, part.y)) for k, (w, loss) in terms.items()}
        return {"loss": first, **rest}

    @property
    def needs_x_hat(self) -> bool:
        """Whether a regulariser looks at x̂."""
        toward = self.options.delta in ("fgsm", "linf") and self.options.lam > 0
        return toward or self.options.hat > 0

    def perturbation(self, modes: fr.Modes, batch: fr.Batch) -> fr.Perturbation | None:
        """Let the attack ascend the cross-entropy, or TRADES' divergence."""
        if self.attack is None:
            return None
        seen = modes.training if self.options.attack_statistics == "batch" else modes.running
        if self.options.trades is None:
            return self.attack.perturb(fr.cross_entropy(seen))
        natural = seen(modes.params, batch.x).detach()
        return self.attack.perturb(fr.kl_divergence(seen, natural))

    def fit(self, modes: fr.Modes, batch: fr.Batch, perturb: fr.Perturbation | None) -> fr.Loss:
        """The loss on x̂, or TRADES' two terms."""
        smoothed = partial(fr.cross_entropy, label_smoothing=self.options.label_smoothing)
        if perturb is None:
            return smoothed(modes.training)
        if self.options.trades is None:
            return fr.adversarial(smoothed(modes.training), perturb, start=batch.start)
        return fr.trades(
            modes.training, perturb, beta=self.options.trades, start=batch.start, natural=smoothed
        )

    def curvature(self, modes: fr.Modes, part: fr.Batch, x_hat: Tensor) -> tuple[float, fr.Loss]:
        """CURE along ``--delta``, and its weight: both in the options' units."""
        options, loss = self.options, self.regularised(modes)
        if options.delta in ("fgsm", "linf"):
            toward = x_hat if options.delta == "fgsm" else part.x + 2 * (x_hat - part.x)
            # Its norm is squared, so its λ scales with σ².
            return options.lam * self.scale**2, fr.gradient_difference(loss, toward=toward)
        cure = fr.cure(
            loss, options.h * self.scale * part.growth, along=part.noise,
            derivative=options.cure_derivative,
        )  # fmt: skip
        return (0.0 if options.delta == "none" else options.lam * self.scale), cure

    def regularised(self, modes: fr.Modes) -> fr.Loss:
        """The cross-entropy that regularisers take, by ``--cure-statistics``."""
        return fr.cross_entropy(getattr(modes, self.options.cure_statistics))

    def helper(self, modes: fr.Modes, x_hat: Tensor) -> fr.Loss:
        """HAT's helper examples, as the standard network calls them."""
        labels = self.helper_labels or (lambda x: x.new_zeros(len(x), dtype=torch.int64))
        return fr.helper_examples(fr.cross_entropy(modes.batch), toward=x_hat, labels=labels)

    def restoration(self, modes: fr.Modes, part: fr.Batch) -> fr.Loss:
        """What ψ of one step, as `psi-train` has it, leaves of the way to the images."""
        assert part.restored is not None
        images, degraded = part.restored
        predict = getattr(modes, self.options.cure_statistics)
        psi = fr.psi(
            fr.logit(predict), fr.unconstrained(bounds=None), targeted=True, steps=1,
            step_size=fitting_step(tuple(images.shape[1:])),
        )  # fmt: skip
        return fr.at(fr.restoration(psi, degraded), images, part.y)

    def regulariser(self, name: str, modes: fr.Modes, part: fr.Batch) -> fr.Loss:
        """Build the public function of that name on what it has a parameter for."""
        offered = _offered(self.ball, part)
        taken = {k: v for k, v in offered.items() if k in self.parameters[name]}
        return _regulariser(name)(self.regularised(modes), **taken)


def _start(batch: fr.Batch) -> Tensor:
    return batch.x if batch.start is None else batch.start


def _regulariser(name: str) -> Callable[..., fr.Loss]:
    build: Callable[..., fr.Loss] = getattr(fr, name.replace("-", "_"))
    return build


def _offered(ball: fr.Ball, part: fr.Batch) -> dict[str, Any]:
    """What a regulariser can have, by the names of its parameters."""
    search = fr.pgd_k(ball, step_size=getattr(ball, "radius", 1.0) / 2, steps=2)
    if part.points is None:
        return {"attack": search}
    points = part.points.unbind(1)
    return {
        "toward": points[0], "start": points[0], "ends": points[:2], "mix": part.mix,
        "attack": search,
    }  # fmt: skip


POINTS = {"toward": 1, "start": 1, "ends": 2, "mix": 1}
"""How many random points of the ball a regulariser with such a parameter looks at."""


def points_of(options: CureTrain) -> int:
    """Return how many random points around each image the regularisers need.

    Raises `FuncrobustError` for a regulariser that needs something training cannot give it.
    """
    needed = 0
    for name in options.regularisers:
        for parameter in list(inspect.signature(_regulariser(name)).parameters.values())[1:]:
            needed = max(needed, POINTS.get(parameter.name, 0))
            required = parameter.default is parameter.empty
            if required and parameter.name not in {*POINTS, "attack"}:
                raise FuncrobustError(
                    f"{name} needs {parameter.name}, which training has not: see CONTRIBUTING.md "
                    "for what a regulariser can ask for"
                )
    return needed


@dataclass(frozen=True)
class Growth:
    """The share of its full h that CURE has at an update, 0-dim float32.

    "constant": 1; "paper": the published stages 0.1, 0.4, 0.8, 1.8, 3 over 3, each for a fifth of
    the run; "linear": from 0 to 1 over the first half.
    """

    kind: str
    total_steps: int

    def __call__(self, step: int, device: torch.device | str = "cpu") -> Tensor:
        t = step / self.total_steps
        share = {
            "constant": 1.0, "linear": min(1.0, 2 * t),
            "paper": PAPER_H[min(4, int(5 * t))] / PAPER_H[-1],
        }[self.kind]  # fmt: skip
        return torch.full((), share, device=device)
