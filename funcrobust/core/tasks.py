"""What an application of ψ is made of: where ψ starts and goes, and what its end is compared with.

All of it is tensors and pure functions. Data, judges and pictures are the command's business; what
is peculiar to a task is in its own file of `funcrobust.core.applications`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import Loss, cross_entropy, logit
from funcrobust.core.network.functional import Functional, Params
from funcrobust.core.perturbations.projected_gradient import Perturbation
from funcrobust.core.starts import Indexed
from funcrobust.core.walks import AnyWalk, Restoring, Walks


class Features(NamedTuple):
    """A classifier's representation: x to (B, d), and the weights (classes, d) that read it."""

    network: Functional
    head: Tensor


@dataclass(frozen=True)
class Scene:
    """All that a task is given.

    ``model`` draws; ``features()`` is its representation. ``x`` (N, C, H, W) in [0, 1] are test
    images with their classes ``y`` (N,), or a user's ``own`` with the classes that the model sees
    in them; ``count`` images are wanted where none are given. ``target`` is the class asked for, if
    any; ``train`` are training images, of uint8 or float, and their classes; ``mirrored`` says
    whether an image's mirror image is one of the set.
    """

    model: Functional
    features: Callable[[], Features]
    x: Tensor
    y: Tensor
    own: bool
    count: int
    target: int | None
    class_names: tuple[str, ...]
    train: tuple[Indexed, Tensor]
    mirrored: bool
    walk: AnyWalk
    seed: int

    @property
    def restoring(self) -> float | None:
        """The step a that ψ was trained to restore with; None where it draws otherwise."""
        return self.walk.step_size if isinstance(self.walk, Restoring) else None

    @property
    def loss(self) -> Loss:
        """What ψ descends: the cross-entropy, or a restoring ψ's own loss."""
        if isinstance(self.walk, Restoring):
            return logit(self.model.predict, guidance=self.walk.guidance)
        return cross_entropy(self.model.predict)

    def sees(self, x: Tensor) -> Tensor:
        """Classify x (B, C, H, W) with the model that draws, a part at a time: (B,)."""
        with torch.no_grad():
            parts = [
                self.model.predict(self.model.params, part).argmax(-1) for part in x.split(BATCH)
            ]
        return torch.cat(parts)

    def asked(self, otherwise: Tensor) -> Tensor:
        """Return the class asked for, once for each of ``otherwise`` (N,), or else those."""
        return otherwise if self.target is None else torch.full_like(otherwise, self.target)

    def aim(self, otherwise: str) -> str:
        """Say in words what `asked` returns."""
        return otherwise if self.target is None else self.class_names[self.target]


Scores = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """One task on N images: ψ from ``start`` (N, C, H, W) toward ``y`` (N,), and how to look at it.

    ``psi`` builds ψ for a part of the images, to be run with ``params``. What ψ made is scored, and
    so are the ``baselines``; a judge should see ``wanted`` (N,) in them, unless that is None. In a
    picture ``above`` and ``below`` are what to show over and under it, column by column, and
    ``titles`` (N,) the classes over the columns.
    """

    psi: Callable[[slice], Perturbation]
    params: Params
    start: Tensor
    y: Tensor
    baselines: dict[str, Tensor]
    titles: Tensor
    above: dict[str, Tensor]
    caption: str
    wanted: Tensor | None = None
    score: Callable[[Tensor], Scores] = lambda _: {}
    below: dict[str, Tensor] = field(default_factory=dict)


class Task(NamedTuple):
    """A row of the list of applications.

    ``plan(scene, ...)`` may take further options by name. A task that does not take ``images``
    starts from nothing; one that makes images ``of_its_own`` is also scored by how near they come
    to real ones as a whole.
    """

    walks: Walks
    plan: Callable[..., Plan]
    images: bool = True
    of_its_own: bool = False


BATCH = 100
"""How many images are drawn or classified together."""


def centred_square(x: Tensor, share: float) -> Tensor:
    """Return a mask (H, W), true in a centred square of ``share`` of each side.

    Raises `FuncrobustError` unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise FuncrobustError(f"hole must be a share in (0, 1), got {share}")
    height, width = x.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    rows, columns = (min(max(1, round(share * size)), size - 1) for size in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[top : top + rows, left : left + columns] = True
    return mask


def psnr(made: Tensor, truth: Tensor) -> float:
    """Mean over images of 10·log₁₀(1/MSE), in dB, as torchmetrics computes it."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    every = tuple(range(1, made.ndim))
    return float(peak_signal_noise_ratio(made, truth, data_range=1.0, dim=every))
