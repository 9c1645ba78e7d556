"""The options of ``cure-train``; names are the CURE document's where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt

from funcrobust.commands.cure_train.presets import PRESETS, fitting
from funcrobust.core.errors import FuncrobustError, unknown_name
from funcrobust.running.catalogue import Function, ParameterOf, attacks, functions, parameter_of
from funcrobust.running.groups import (
    Radius,
    Restored,
    Run,
    of_another_norm,
    require_norm_of,
)
from funcrobust.running.marks import Choices, Count, Flag, Weight
from funcrobust.running.optimiser import TYPICAL, Opt, Rate, Schedule
from funcrobust.running.options import Options, only_with, unless
from funcrobust.running.places import CheckpointName, DatasetName, Factory

NOT_ADDED = ("cure", "gradient-difference", "top-curvature", "linearity-error")
"""Functions beside the regularisers: the first two have flags of their own, the others measure."""


def attack_names() -> tuple[str, ...]:
    """Return what ``--attack`` takes."""
    return (*attacks(), "none")


def regularisers() -> dict[str, Function]:
    """Return what ``--regulariser`` takes."""
    found = functions("core.regularisers", "Loss")
    return {name: function for name, function in found.items() if name not in NOT_ADDED}


def network_of(checkpoint: str) -> dict[str, str]:
    """Return the option of its network; code it may not choose.

    Raises `FuncrobustError` for a file that does not say which: several networks may have its
    tensors.
    """
    from funcrobust.checkpoints import is_zoo
    from funcrobust.checkpoints.loading import model_of
    from funcrobust.models.registry import names_code

    try:
        model = model_of(checkpoint)
    except FuncrobustError:  # is refused as an option, in its words
        return {}
    if model is None:
        raise FuncrobustError(
            f"{checkpoint} does not say which network it is: name it with --model"
        )
    return {"model": model} if is_zoo(checkpoint) or not names_code(model) else {}


def _attacks(parameter: str) -> ParameterOf:
    return parameter_of("attack", attacks, parameter)


@dataclass(frozen=True, kw_only=True)
class Attacked(Options):
    """Attack."""

    attack: Annotated[str, Choices(attack_names)] = "n-fgsm"
    """What the network is trained on; fgsm is the document's name of rs-fgsm."""
    attack_steps: Annotated[Count, _attacks("steps")] = 10
    """Steps of PGD and of Auto-PGD."""
    noise: Annotated[Weight, _attacks("noise"), only_with(delta_init="random")] = 2.0
    """N-FGSM's k: its start is uniform in ±k·ε."""
    quantile: Annotated[float, Ge(0), Lt(1), _attacks("quantile")] = 0.35
    """ZeroGrad's q: the share of an image's gradient entries that it drops."""
    constraint: Literal["linf", "l2"] = "linf"
    """The threat model."""
    epsilon: Radius = 8 / 255
    """Its radius."""
    alpha: Annotated[float, Gt(0), _attacks("step_size")] | None = None
    """The attack's step; left out: 1.25 ε for rs-fgsm and zerograd (10/255 at ε = 8/255), ε for
    n-fgsm, 2 ε for the first of apgd-k; for pgd-k ε/4, or 2.5 ε/steps for fewer than ten, at most
    1.25 ε."""
    delta_init: Annotated[Literal["random", "zero"], only_with(attack=...)] = "random"
    """The attack's start; zero is the image itself."""
    attack_statistics: Annotated[Literal["batch", "running"], only_with(attack=...)] = "batch"
    """Batch norm in the attack. No difference was found."""


@dataclass(frozen=True, kw_only=True)
class Regularised(Restored):
    """CURE and other regularisers."""

    delta: Annotated[
        Literal["classic", "random", "fgsm", "linf", "none"], only_with(lam=...)
    ] = "classic"  # fmt: skip
    """CURE's direction."""
    h: Annotated[float, Gt(0), only_with(curvature=...), only_with(delta=("classic", "random"))] = (
        3.0
    )
    """CURE's finite-difference length."""
    h_schedule: Annotated[
        Literal["constant", "paper", "linear"],
        only_with(curvature=...), only_with(delta=("classic", "random")),
    ] = "constant"  # fmt: skip
    """Of h: paper is its five stages."""
    lam: Annotated[Weight, Flag("--lambda"), only_with(delta=...)] = 0.5
    """Weight of CURE."""
    units: Annotated[Literal["normalized", "pixel"], only_with(curvature=...)] = "normalized"
    """Of h and lambda: normalized is the document's code, which perturbs inputs divided by their
    standard deviation; pixel is [0, 1]."""
    cure_derivative: Annotated[
        Literal["shared", "batched", "forward", "central", "one-sided"],
        only_with(curvature=...), only_with(delta=("classic", "random")),
    ] = "shared"  # fmt: skip
    """How CURE is differentiated in the weights."""
    regularisers: Annotated[
        dict[str, float], Gt(0), Flag("--regulariser"), Choices(regularisers)
    ] = field(default_factory=dict)
    """Another regulariser and its weight, again and again."""
    kappa: Weight = 0.0
    """Weight of the cross-entropy on clean images."""
    trades: Annotated[
        Annotated[float, Gt(0)] | None, Flag("--trades", off="--no-trades"), only_with(attack=...)
    ] = None  # fmt: skip
    """TRADES' β: its two terms in place of the cross-entropy on x̂."""
    hat: Weight = 0.0
    """Weight of HAT's helper examples."""
    helper: Annotated[CheckpointName, only_with(hat=...)] | None = None
    """Checkpoint of the standard network that labels HAT's helper examples."""
    cure_statistics: Annotated[
        Literal["batch", "held", "running"], only_with(regularised=...)
    ] = "batch"  # fmt: skip
    """Batch norm in the regularisers; running is the document's.

    On the digits, 12 epochs, PGD-20 at 0.15: without CURE 70.0 %, batch 75.0 %, running 66.5 %,
    held 32.5 %. On CIFAR-10 with running, preact-small-silu stood at 55 % clean after nine epochs
    and at 22 % after eleven, while at the batch's own statistics it went on to 58 %.
    """
    cure_fraction: Annotated[float, Gt(0), Le(1), only_with(regularised=...)] = 0.25
    """Share of each batch that carries the regularisers."""
    cure_every: Annotated[Count, only_with(regularised=...)] = 8
    """Regularisers at every k-th update alone, k times as heavy."""

    @property
    def curvature(self) -> bool:
        """The curvature term: a --lambda above 0 and a --delta."""
        return self.lam > 0 and self.delta != "none"

    @property
    def regularised(self) -> bool:
        """A regulariser: --lambda, --regulariser, --kappa, --hat or --restore."""
        others = (*self.regularisers.values(), self.kappa, self.hat, self.restore)
        return self.curvature or any(weight > 0 for weight in others)

    @property
    def cycle(self) -> int:
        """Updates from one with regularisers to the next; 1 without any."""
        return self.cure_every if self.regularised else 1


@dataclass(frozen=True, kw_only=True)
class CureTrain(Attacked, Regularised, Run):
    """Training."""

    chosen_by = "preset"

    preset: Annotated[str, Choices(PRESETS)] = "cpu"
    """Where the other options begin; left out: digits for --dataset digits, fast on CUDA, else
    cpu."""
    model: Annotated[str, Factory] = "preact-tiny"
    """A network's name, or package.module:factory; left out beside --checkpoint: that one's."""
    checkpoint: CheckpointName | None = None
    """Begin from its weights: file, run folder, shipped name or robustbench:NAME; left out: from
    random ones."""
    dataset: DatasetName = "cifar10"
    """A name, FILE.npz or FOLDER."""
    epochs: Annotated[Count, unless(minutes=...)] = 5
    """Passes over the training set."""
    batch_size: Annotated[int, Ge(2)] = 128
    opt: Opt = "Muon"
    lr_max: Rate = TYPICAL["Muon"]["lr_max"]
    """Highest learning rate; beside another --opt than the preset's that one's own: 0.2 for SGD,
    0.005 for Muon, 0.001 for Adam and AdamW."""
    weight_decay: Weight = TYPICAL["Muon"]["weight_decay"]
    """L2 regularisation, decoupled for AdamW and Muon; beside another --opt its own: 0.0005 for
    SGD, 0.3 for Muon, 0.01 for AdamW, 0 for Adam."""
    lr_schedule: Schedule = "superconverge"
    ema: Annotated[float, Ge(0), Lt(1)] = 0.995
    """Decay of the weight average that is evaluated and kept; 0 keeps none."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Of the cross-entropy."""
    padding: Annotated[int, Ge(0)] = 1
    """Training images are shifted at random by up to so many pixels, black ones moving in.

    The literature's 4 keeps large networks and long trainings from fitting what they train on; a
    short one of a small network fits too little as it is (docs/recipes.md).
    """
    robust_examples: Count = 256
    """So many training images and as many test images, at random and the same throughout, are
    attacked after an epoch by PGD-10 and then by sharp PGD."""
    watch_every: Count = 1
    """Attack them after every N-th epoch, and after the last. A collapse is found by comparing two
    such measurements."""

    @classmethod
    def beneath(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the preset's values: of the one given, or of the one that fits.

        TRADES goes with its attack alone; rate and decay are those of the optimiser.
        """
        name = given.get("preset") or fitting(given.get("dataset"), given.get("device", "auto"))
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        preset = PRESETS[name] | {"preset": name}
        if _differs(given, preset, "attack", cls.attack):
            preset.pop("trades", None)
        if _differs(given, preset, "opt", cls.opt):
            preset |= TYPICAL.get(str(given["opt"]), {})
        return preset

    @classmethod
    def filled(cls, given: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> Self:
        """Refuse a threat model of another norm with the radius of the preset's.

        A checkpoint says which network it is of.
        """
        preset = cls.beneath(given) if preset is None else preset
        checkpoint = given.get("checkpoint")
        own = given.get("model") is not None or given.get("resume") is not None
        if isinstance(checkpoint, str) and not own:
            preset = {**preset, **network_of(checkpoint)}
        options = super().filled(given, preset)
        usual = preset.get("constraint", cls.constraint)
        chosen = given.get("constraint", usual)
        if chosen != usual and given.get("epsilon") is None:
            raise of_another_norm("", options.epsilon, usual, chosen)
        return options

    def check(self) -> None:
        """Refuse what does not go together."""
        super().check()
        if self.opt != type(self).opt and not self._said.issuperset(TYPICAL[self.opt]):
            raise FuncrobustError(
                f"the rate and the decay are {type(self).opt}'s: give lr_max and weight_decay "
                f"beside opt, or build the options with {type(self).__name__}.filled"
                f"({{'opt': {self.opt!r}, ...}})"
            )
        require_norm_of(self.attack, self.constraint)
        if self.hat > 0 and self.helper is None:
            raise FuncrobustError(
                "--hat needs --helper, the checkpoint of a network trained with no attack"
            )
        if self.attack == "none" and (
            self.hat > 0 or (self.curvature and self.delta in ("fgsm", "linf"))
        ):
            raise FuncrobustError(
                "--hat, and --delta fgsm or linf, look toward x̂, which --attack none has not"
            )
        if self.trades is not None and self.delta_init == "zero":
            raise FuncrobustError(
                "--trades needs --delta-init random: its KL has no slope at x itself"
            )


def _differs(given: Mapping[str, Any], preset: Mapping[str, Any], name: str, usual: Any) -> bool:
    """Tell whether another one than the preset's is given."""
    return name in given and given[name] != preset.get(name, usual)
