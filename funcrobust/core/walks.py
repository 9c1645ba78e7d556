r"""How ψ draws: L2 steps in a ball, or the steps of a ψ that restores, shortened.

An application is the same either way: a loss, a ball and a start. A walk says how the loss is
descended, ``walk.toward(loss, ball)``, and what its ball is where the application adds nothing to
it, or only cuts it: ``walk.ball``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.composed import Composed, with_steps
from funcrobust.core.balls.l2 import l2
from funcrobust.core.balls.unconstrained import Unconstrained, unconstrained
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.losses import Loss
from funcrobust.core.network.functional import Params
from funcrobust.core.perturbations.projected_gradient import Perturbation, psi
from funcrobust.core.perturbations.sampling import part_of_the_way


class Walk(NamedTuple):
    """How any robust classifier draws: L2 steps, in a ball that the start is the centre of.

    Radius and step size are lengths over the whole image, in units of the data.
    """

    radius: float
    step_size: float
    steps: int

    @property
    def ball(self) -> Ball:
        """Where the walk may go."""
        return l2(self.radius)

    def toward(self, loss: Loss, ball: Ball) -> Perturbation:
        """Build ψ toward a label, in a ball that need not be the walk's own."""
        return psi(loss, ball, step_size=self.step_size, steps=self.steps, targeted=True)

    def __str__(self) -> str:
        """Say it."""
        return f"{self.steps} L2 steps of {self.step_size:g}, radius {self.radius:g}"


class Restoring(NamedTuple):
    """How a ψ that was trained to restore draws: its own steps, shortened.

    D(x) = x + a·∇z_y(x), a the ``step_size`` of its training, is an estimate of the image behind x.
    A step goes the share h of the way there, (1 − h)^steps = ``remain``: see `part_of_the_way`. One
    step with ``remain`` 0 is D itself. The loss is ψ's own in training, such as `logit`; it must
    have the ``guidance`` itself, which is only kept here. There are no bounds on the way, as there
    were none in training; the end is clamped to [0, 1].
    """

    steps: int
    remain: float
    step_size: float = 10.0
    guidance: float = 0.0

    @property
    def ball(self) -> Ball:
        """Where the walk may go: anywhere, along the gradient itself."""
        return unconstrained(bounds=None)

    def toward(self, loss: Loss, ball: Ball) -> Perturbation:
        """Build ψ toward a label, in a ball that need not be the walk's own."""
        if not isinstance(self.step_size, int | float) or not self.step_size > 0:
            raise FuncrobustError(
                "step_size must be that of the training that taught ψ to restore, its card's "
                f"restoring_step, a number > 0; got {self.step_size}. A classifier that was not "
                "trained so draws by fr.Walk(radius, step_size, steps)"
            )
        if self.steps > 1 and not self.remain:
            raise FuncrobustError("several restoring steps leave a share of the way: remain > 0")
        whole = not (self.steps and self.remain)
        share = 1.0 if whole else part_of_the_way(self.steps, self.remain)
        if _normalises(ball):  # the ball confines; the steps are the gradient's own
            ball = with_steps(ball, unconstrained(bounds=None))
        walk = psi(loss, ball, step_size=share * self.step_size, steps=self.steps, targeted=True)
        return clamped(walk)

    def __str__(self) -> str:
        """Say it."""
        many = "step" if self.steps == 1 else "steps"
        left = f", {self.remain:.2g} of the way left" if self.remain else ""
        guided = f", guidance {self.guidance:g}" if self.guidance else ""
        size = f"{self.step_size:.3g} times the logit's slope"
        return f"{self.steps} restoring {many} of {size}{left}{guided}"


def _normalises(ball: Ball) -> bool:
    while isinstance(ball, Composed):
        ball = getattr(ball, "steps", ball.ball)
    return not isinstance(ball, Unconstrained)


def clamped(perturbation: Perturbation) -> Perturbation:
    """Build a perturbation whose end is clamped to [0, 1]."""

    def perturb(
        params: Params, start: Tensor, y: Tensor, *, center: Tensor | None = None
    ) -> Tensor:
        return perturbation(params, start, y, center=center).clamp(0, 1)

    return perturb


class Walks(NamedTuple):
    """A task's presets: for images of about 224, 32 and 8 pixels a side, and for a ψ that restores.

    Those for ImageNet are the radii, step sizes and steps of the notebooks published with
    Santurkar et al. 2019 (arXiv:1906.09453); the others were measured here.
    """

    imagenet: Walk
    cifar: Walk
    digits: Walk
    restoring: Restoring = Restoring(10, 0.05, guidance=0.3)

    def of(self, image_shape: tuple[int, ...], restoring: float | None = None) -> AnyWalk:
        """Return the preset of the nearest size for images (C, H, W), or of a ψ that restores.

        ``restoring`` is the step a that ψ was trained to restore with, None if it was not.
        """
        if restoring is not None:
            return self.restoring._replace(step_size=restoring)
        height = image_shape[-2]
        return self.imagenet if height > 84 else self.cifar if height > 16 else self.digits


AnyWalk = Walk | Restoring
"""How ψ draws."""
