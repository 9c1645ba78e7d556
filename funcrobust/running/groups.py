"""Options that several commands have; each class is a heading of their help.

Lengths (epsilon, alpha, step_size) are in units of the data, [0, 1]: 8/255 is 0.0314.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Lt

from funcrobust.core.errors import FuncrobustError
from funcrobust.files import is_plain_name
from funcrobust.running.marks import Count, Flag, Lies, Spelled, Vouched, Weight, Where
from funcrobust.running.optimiser import Optimiser
from funcrobust.running.option import options_of, written_number
from funcrobust.running.options import Options, only_with, unless
from funcrobust.running.places import (
    MAX_GIB,
    CheckpointName,
    DatasetName,
    Decoded,
    Folder,
    Output,
    Place,
    is_much,
    require_run,
    require_there,
)

if TYPE_CHECKING:
    from funcrobust.core.walks import AnyWalk, Walks


Precision = Literal["fp32", "bf16", "auto"]
Radius = Annotated[Weight, Flag("--epsilon", "--eps")]


def _require_device(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise FuncrobustError(f"unknown device {text!r}: use auto, cpu, cuda or cuda:N")


def _require_plain_name(text: str) -> None:
    if not is_plain_name(text):
        raise FuncrobustError(f"--name must be one plain folder name, got {text[:80]!r}")


@dataclass(frozen=True, kw_only=True)
class Images(Options):
    """Images."""

    dataset: DatasetName | None = None
    """A name, FILE.npz or FOLDER; left out: the data that the checkpoint was made for."""
    data_dir: Annotated[Path | None, Where(), Place, Lies(require_there)] = None
    """A local folder that holds a published dataset."""
    max_data_gib: Annotated[float, Gt(0), Le(2**20), Vouched(is_much), Decoded] = MAX_GIB
    """What images of your own may be at most when they are decoded. More in a FOLDER are streamed,
    more in a file is refused."""
    stream: Annotated[bool | None, Decoded] = None
    """Decode a FOLDER's images when they are wanted, in place of holding all in memory; left out:
    where they would take more than --max-data-gib, and for one of train-*.tar and val-*.tar."""
    image_size: Annotated[Count | None, Decoded] = None
    """Side of the square that streamed images are cut to; left out: the checkpoint's, or 224."""
    workers: Annotated[Annotated[int, Ge(0), Le(256)] | None, Where(), Decoded] = None
    """Processes that decode streamed images; left out: one a processor but one, at most 8."""

    @property
    def max_bytes(self) -> int:
        """What images of your own may be in memory, in bytes."""
        return int(self.max_data_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class Machine(Options):
    """Machine."""

    device: Annotated[str, Where(), Spelled(_require_device)] = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Every random number follows from it."""


@dataclass(frozen=True, kw_only=True)
class Figures(Options):
    """Figures."""

    json_file: Annotated[Output | None, Flag("--json")] = None
    """Write the figures there, those of every image too where there are any; - prints them alone.
    """

    @property
    def prints_figures(self) -> bool:
        """Whether standard output is for the figures alone."""
        return str(self.json_file) == "-"


@dataclass(frozen=True, kw_only=True)
class Measured(Figures, Images, Machine):
    """Classifier.

    What every command has that measures one and gives figures.
    """

    checkpoint: CheckpointName | None = field(default=None, kw_only=False)
    """File, run folder, shipped name or robustbench:NAME; left out: the shipped classifier."""
    model: str | None = None
    """Architecture of a foreign .pt file, or the factory of a checkpoint of your own network; or
    NAME-flip, of a checkpoint of NAME: the mean of its logits of both mirror images."""
    precision: Precision = "fp32"
    """What the network is measured in: fp32, bf16 for autocast, or auto, bf16 where the hardware
    multiplies it."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Options):
    """How ψ draws."""

    steps: Annotated[int, Ge(0)] | None = None
    """Steps of ψ; left out: by task and size."""
    step_size: Weight | None = None
    """An L2 step; left out: by task and size, or none where the checkpoint restores."""
    radius: Weight | None = None
    """Of the L2 steps; left out: by task and size, or none where the checkpoint restores."""
    remain: Annotated[float, Ge(0), Lt(1), unless(plain=True)] | None = None
    """The share of the way that restoring steps leave in all; left out: by task."""
    guidance: Annotated[Weight, unless(plain=True)] | None = None
    """How much of log p_y restoring steps add to the logit; left out: by task."""

    @property
    def plain(self) -> bool:
        """A step size or radius."""
        return self.step_size is not None or self.radius is not None

    def walk(self, walks: Walks, shape: tuple[int, ...], restoring: float | None) -> AnyWalk:
        """Return the preset for images (C, H, W), with what was given in its place.

        A network that restores (``restoring`` is its step) draws so, unless what belongs to other
        steps is given.
        """
        chosen = walks.of(shape, None if self.plain else restoring)
        given: dict[str, Any] = {
            "steps": self.steps, "step_size": self.step_size, "radius": self.radius,
            "remain": self.remain, "guidance": self.guidance,
        }  # fmt: skip
        fit = {k: v for k, v in given.items() if v is not None and k in chosen._fields}
        return chosen._replace(**fit)


def require_heard(options: Drawing, walks: Iterable[AnyWalk]) -> None:
    """Raise for an option of restoring steps where none of the networks draws by them."""
    if any(hasattr(walk, "remain") for walk in walks):
        return
    for name in ("remain", "guidance"):
        if getattr(options, name) is not None:
            raise FuncrobustError(
                f"--{name} does nothing here: it needs a checkpoint that was trained to restore"
            )


@dataclass(frozen=True, kw_only=True)
class Run(Images, Machine, Optimiser):
    """Run."""

    shared: ClassVar[bool] = True
    minutes: Annotated[float, Gt(0), Le(1e6)] | None = None
    """Choose the length so that training, measuring and drawing are done within so many minutes on
    this machine. A few updates are timed first; config.json keeps the length that follows."""
    precision: Precision = "auto"
    """fp32, bf16 for autocast, or auto: bf16 where the hardware multiplies it."""
    compile: bool | None = None
    """Make the update one graph, checked against the eager one; left out: yes on CUDA, except with
    --minutes or --capture.

    On two CPU cores compiling costs two minutes and gains nothing, and beside an H100 it cost five.
    """
    capture: Annotated[bool | None, unless(compile=True)] = None
    """Replay the update as a CUDA graph, checked against the eager one; left out: yes on CUDA,
    where one process trains and nothing is compiled."""
    train_examples: Count | None = None
    """Use so many training images; left out: all."""
    test_examples: Count | None = None
    """Use so many test images; left out: all."""
    evaluate_examples: Count = 1000
    """Test images of the final figures, at random."""
    evaluate_steps: Count = 20
    """PGD steps of the final figures."""
    out: Folder = Path("runs")
    """Where run folders go."""
    name: Annotated[str | None, Where(), Spelled(_require_plain_name)] = None
    """The run folder's name; left out: date, time and command."""
    log: Annotated[Literal["none", "tensorboard", "wandb"], Where()] = "none"
    """Where records go besides metrics.jsonl."""
    save_every: Annotated[float, Gt(0), Where()] = 60.0
    """Seconds between two saves: what a kill costs at most."""
    resume: Annotated[Path | None, Where(), Lies(require_run)] = None
    """A run folder to continue, with its own options.

    Code that its config.json names, and places outside the folder, are taken only if they are said
    again.
    """

    @property
    def unread(self) -> bool:
        """Whether the others are those of the run to resume."""
        return self.resume is not None

    @classmethod
    def filled(cls, given: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> Self:
        """Refuse what a resumed run could not heed; see ``Options.filled``."""
        if given.get("resume") is not None:
            require_resumable(cls, given)
            preset = {}
        return super().filled(given, preset)


@dataclass(frozen=True, kw_only=True)
class Restored(Options):
    """Restoration."""

    restore: Weight = 0.0
    """Weight of ‖x − ψ(s; θ)‖²/(d·ρ), s a degraded x of d numbers, ρ = ‖s − x‖/√d."""
    noise_low: Annotated[float, Gt(0), only_with(noisy=...)] = 0.02
    """Least standard deviation of the Gaussian noise that degrades an image."""
    noise_high: Annotated[float, Gt(0), only_with(noisy=...)] = 0.6
    """Largest; between them all orders of magnitude are equally frequent."""
    mixed: Annotated[float, Ge(0), Le(1), only_with(restore=...)] = 0.5
    """Share of the images that are mixed with a start for drawing in place of noise: half of them
    with a Gaussian image of their class, half with white noise."""

    @property
    def noisy(self) -> bool:
        """A --restore above 0 and a --mixed below 1."""
        return self.restore > 0 and self.mixed < 1

    def check(self) -> None:
        """Refuse noise levels that are the wrong way round."""
        super().check()
        if self.noise_low > self.noise_high:
            raise FuncrobustError(
                f"--noise-low {self.noise_low:g} exceeds --noise-high {self.noise_high:g}"
            )


ANEW = ("device", "capture", "data_dir", "log", "save_every", "workers", "quiet")
"""What may be said anew when a run is resumed: the numbers do not depend on it."""


def require_resumable(cls: type[Options], given: Iterable[str]) -> None:
    """Raise for options that a resumed run has already, and would ignore."""
    fields = options_of(cls)
    extra = [
        fields[name].flag
        for name in given
        if name not in (*ANEW, "resume") and not fields[name].vouched
    ]
    if extra:
        raise FuncrobustError(
            f"--resume goes on with the run's own options: leave {', '.join(extra)} out"
        )


def require_norm_of(attack: str, constraint: str | None) -> None:
    """Raise for an attack that is of one norm alone, in another; None is not known yet."""
    if attack == "n-fgsm" and constraint not in ("linf", None):
        raise FuncrobustError(
            "n-fgsm is an L-infinity attack: use --constraint linf, or --attack rs-fgsm"
        )


def of_another_norm(whose: str, epsilon: float, norm: str, wanted: str) -> FuncrobustError:
    """Build the error for a radius that was chosen in one norm and would be taken in another."""
    return FuncrobustError(
        f"{whose}ε = {written_number(epsilon)} is a radius in {norm}: give --epsilon for {wanted}"
    )
