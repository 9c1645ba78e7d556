"""The options of ``apply``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt

from funcrobust.core import applications
from funcrobust.running.catalogue import Function, ParameterOf, function, parameter_of
from funcrobust.running.groups import Drawing, Figures, Images, Machine
from funcrobust.running.judge_names import JudgeOption
from funcrobust.running.marks import Acts, Choices, Count, Lies
from funcrobust.running.option import require_once
from funcrobust.running.options import unless
from funcrobust.running.places import CheckpointName, Picture, require_there


def tasks() -> dict[str, Function]:
    """Return the plan of each application, by name."""
    modules = {name: name.replace("-", "_") for name in applications.names()}
    return {
        name: function(f"core.applications.{module}", "plan") for name, module in modules.items()
    }


def _tasks(parameter: str) -> ParameterOf:
    return parameter_of("task", tasks, parameter)


_without_feature = Acts(
    lambda options: options.feature is None, lambda _: "--feature takes its place"
)


@dataclass(frozen=True, kw_only=True)
class Apply(Figures, Images, Drawing, Machine):
    """Application."""

    shared: ClassVar[bool] = True

    task: Annotated[str, Choices(applications.names)] = field(kw_only=False)
    """What to draw."""
    checkpoints: tuple[CheckpointName, ...] = field(default=(), kw_only=False)
    """Classifiers that draw, side by side: files, run folders, shipped names,
    robustbench:NAME; left out: shipped."""
    model: tuple[str, ...] = ()
    """Architecture of a foreign .pt file, the factory of a checkpoint of your own network, or
    NAME-flip of a checkpoint of NAME; again and again, for checkpoints of different ones."""
    judge: JudgeOption | None = None
    """A classifier, inception[:FILE], timm:NAME[=FILE] or none; left out: the shipped classifier.

    That one only where it knows the same images. A FILE holds weights; without one they are
    fetched.
    """
    image: tuple[Annotated[Path, Lies(require_there)], ...] = ()
    """Your own image, in place of the test set's; again and again."""
    to: Annotated[str, _without_feature] | None = None
    """The class to go toward, by name or number."""
    examples: Annotated[Count, unless(image=...)] = 100
    """How many images, of the test set's at random."""
    hole: Annotated[float, Gt(0), Lt(1), _tasks("hole")] | None = None
    """Side of inpainting's hole or painting's patch, of an image's side 1; left out: by task."""
    noise: Annotated[float, Gt(0), _tasks("noise"), unless(image=...)] = 25.0
    """Gray levels of 255 that denoising adds: the noise's standard deviation."""
    scale: Annotated[Count, _tasks("scale")] = 4
    """How many times super-resolution enlarges."""
    feature: Annotated[int, Ge(0), _tasks("feature")] | None = None
    """What painting raises, by L2 steps; left out: the class, where the checkpoint restores."""
    png: Picture | None = None
    """The picture to write; left out: TASK.png, if there is none yet."""

    def check(self) -> None:
        """Refuse a network's name that is there twice."""
        super().check()
        require_once("--model", self.model)

    @property
    def plain(self) -> bool:
        """A step size, radius or feature."""
        return super().plain or self.feature is not None
