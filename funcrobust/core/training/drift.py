"""ψ-training as an objective: to transfer a robust classifier by the derivative of its drift.

As in `robust`, an objective is ``(params, buffers, *batch) -> (scalar, (buffers, metrics))``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from funcrobust.core.derivatives.adjoint import Step
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import per_example
from funcrobust.core.losses import Distance, Loss, cross_entropy, entropy, squared_l2
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.core.perturbations.projected_gradient import Perturbation, constant
from funcrobust.core.training.robust import require_fraction
from funcrobust.core.training.updates import Metrics, TrainingObjective


def psi_training(
    model: Functional,
    psi: Callable[[Predict], Perturbation],
    *,
    distance: Distance = squared_l2,
    anchor: Callable[[Predict], Loss] = cross_entropy,
    weight: float,
    entropy_weight: float = 0.0,
    drift_weight: float = 1.0,
    fraction: float = 1.0,
    approach: Callable[[Predict], Step] | None = None,
    longest: int = 16,
    dtype: torch.dtype | None = None,
) -> TrainingObjective:
    """ψ-training with an anchor:

        L(θ) = δ · mean ‖x − ψ(s; θ)‖² + μ · mean a(θ, x, y) + η · mean H(p(θ, ψ(s; θ)))

    ``psi`` and ``anchor`` are built on a `Predict`; ``distance`` swaps the squared norm; μ is
    ``weight``, η ``entropy_weight`` and δ ``drift_weight``, and 0, 0, 1 are the ψ document's loss
    alone. (δ = 0 is the control: all else, without ψ.) The batch is
    ``(x, label, y)``, then the start s, which is x unless given: ψ moves s toward (or from)
    ``label``; y is the true one of x. With s a degraded x, ψ is trained to restore. ``fraction`` of
    the batch, its first part, carries ψ, whose derivative costs many times the anchor's.

    With ``approach``, a `Step` built on a `Predict`, the batch ends in integers ``stops`` (B,), and
    x in the first term is an image that the network made itself: s after so many steps, ``longest``
    at most, held constant. ψ is then trained to stay where it has arrived.

    The network is in evaluation mode, so that its statistics cannot move: in the published code
    they alone did.

    Raises `FuncrobustError` for weights negative or not finite, or ``fraction`` outside (0, 1].
    """
    require_finite("weight", weight)
    require_finite("entropy_weight", entropy_weight)
    if require_finite("drift_weight", drift_weight) + weight + entropy_weight == 0:
        raise FuncrobustError("psi-training needs a term of positive weight")
    require_fraction(fraction)

    def objective(
        params: Params,
        buffers: Buffers,
        x: Tensor,
        label: Tensor,
        y: Tensor,
        start: Tensor | None = None,
        stops: Tensor | None = None,
        *,
        target: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        predict = autocast(model.with_buffers(buffers), dtype)
        n = max(1, round(fraction * len(x)))
        start, target = (x if start is None else start)[:n], (x if target is None else target)[:n]
        if approach is not None and drift_weight + entropy_weight > 0:
            if stops is None:
                raise FuncrobustError("an approach needs its stops in the batch")
            step = approach(predict)
            held = constant(params)
            start = target = _arrived(step, longest, stops[:n], held, start, label[:n])
        metrics: Metrics = {}
        total = x.new_zeros(())
        if drift_weight > 0 or entropy_weight > 0:
            end = psi(predict)(params, start, label[:n])
            metrics["drift"] = distance(target, end).mean()
            total = drift_weight * metrics["drift"]
        if entropy_weight > 0:
            metrics["entropy"] = entropy(predict)(params, end, label[:n]).mean()
            total = total + entropy_weight * metrics["entropy"]
        if weight > 0:
            metrics["anchor"] = anchor(predict)(params, x, y).mean()
            total = total + weight * metrics["anchor"]
        return total, (buffers, {name: m.detach() for name, m in metrics.items()})

    return objective


def _arrived(
    step: Step, longest: int, stops: Tensor, params: Params, start: Tensor, label: Tensor
) -> Tensor:
    """Take ``stops`` (B,) steps from ``start``, each image its own number; constant.

    All take the longest way, and those that have arrived stay: a loop that no value decides.
    """
    x = start
    for t in range(longest):
        x = torch.where(per_example(t < stops, x), step(params, x, label, start), x)
    return x.detach()


STARTS = "psi.starts"
"""The name under which `with_learned_starts` keeps its images among the parameters."""


def with_learned_starts(objective: TrainingObjective, *, rate: float) -> TrainingObjective:
    """Optimise the start images along with θ: min over θ and {xᵢ} of Σ ‖xᵢ − ψ(xᵢ; θ)‖².

    ``objective`` is `psi_training`'s. The batch is ``(x, label, y, index)``: the anchor sees x and
    y, ψ starts from, and is compared with, the images ``index`` (B,) of the N kept in
    ``params[STARTS]`` (N, C, H, W). They are stored divided by ``rate``, so that a step of SGD
    moves an image ``rate``² times as far as it would a weight; they are clamped to [0, 1] where
    used.
    """

    def joint(
        params: Params, buffers: Buffers, x: Tensor, label: Tensor, y: Tensor, index: Tensor
    ) -> tuple[Tensor, tuple[Buffers, Metrics]]:
        network = {name: p for name, p in params.items() if name != STARTS}
        starts = (rate * params[STARTS][index]).clamp(0.0, 1.0)
        return objective(network, buffers, x, label, y, starts, target=starts)

    return joint
