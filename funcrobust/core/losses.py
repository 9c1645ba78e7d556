"""Losses, and distances between images: all per example, never reduced early."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from funcrobust.core.arguments import require_labels, require_predict
from funcrobust.core.errors import FuncrobustError, require_finite
from funcrobust.core.examples import flat, safe_norm, squared_norm
from funcrobust.core.network.functional import Params, Predict

Loss = Callable[[Params, Tensor, Tensor], Tensor]
"""``(params, x, y) -> (B,)``, per example: x (B, …) of any shape, y (B, …), such as (B,) int64."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""``(a, b) -> (B,)``: both (B, …)."""


def per_example_loss(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values`` if they are one for each example of x, (B,), else raise.

    A loss that is reduced early would be differentiated without complaint, and be B times too
    small: `FuncrobustError` says so.
    """
    if values.shape != x.shape[:1]:
        mend = 'leave out the mean (reduction="none")'
        if x.ndim in (1, 3) and values.shape == (1,):
            mend = "one image alone is x[None], a batch of one"
        raise FuncrobustError(
            f"a loss is per example, (B,) = ({len(x)},), and this one gave {tuple(values.shape)}: "
            f"{mend}"
        )
    return values


def log_odds(predict: Predict, *, temperature: float = 1.0) -> Loss:
    """Build the log-odds of being wrong, m = log Σ_{j≠y} e^{z_j} − z_y, z = t·predict(θ, x).

    Cross-entropy is log(1 + eᵐ), so every normalised step along the one is a step along the other;
    but this one keeps its slope however confident the network: where cross-entropy's is rounding
    (p_y − 1 in float32), or nothing at all, ∂m/∂z_y is still −1. Positive where another class is
    likelier than not. ``temperature`` t multiplies the logits: a large t goes after the likeliest
    other class alone (t → ∞ is t times the `margin`), a small one after all of them at once.

    The labels y (B,) are classes. Raises `FuncrobustError` for a temperature that is not positive.
    """
    require_predict(predict)
    if not 0 < temperature < float("inf"):
        raise FuncrobustError(f"temperature must be a finite number > 0, got {temperature}")

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = predict(params, x)
        return odds_of(logits if temperature == 1 else temperature * logits, y)

    return loss


def odds_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return log Σ_{j≠y} e^{z_j} − z_y of logits z (B, C): (B,)."""
    own, others = own_and_others(logits, y)
    # Where every other class is masked, m is −∞, and torch's slope of its logsumexp is NaN.
    alone = (others == -torch.inf).all(-1)
    sums = others.masked_fill(alone.unsqueeze(-1), 0.0).logsumexp(-1)
    return sums.masked_fill(alone, -torch.inf) - own


def require_classes(logits: Tensor) -> None:
    """Raise `FuncrobustError` for logits (B, C) of fewer than two classes."""
    if logits.shape[-1] < 2:
        raise FuncrobustError(
            "a classifier has a logit for each class, two at least, and this one has "
            f"{logits.shape[-1]}: of one logit z make torch.cat([torch.zeros_like(z), z], -1)"
        )


def own_and_others(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_y (B,), and z with −∞ in y's place (B, C)."""
    require_labels(y, logits.shape[:-1])
    require_classes(logits)
    others = logits.masked_fill(_is(y, logits), -torch.inf)
    return logits.gather(-1, y.unsqueeze(-1)).squeeze(-1), others


def spread_of(logits: Tensor) -> Tensor:
    """Return the standard deviation over the classes of logits (B, C): (B,).

    A class that is masked, with a logit of −∞, does not count; 0 where no two are left.
    """
    there = logits.isfinite()
    count = there.sum(-1)
    mean = torch.where(there, logits, 0.0).sum(-1) / count
    apart = torch.where(there, logits - mean.unsqueeze(-1), 0.0)
    return (apart.square().sum(-1) / (count - 1)).sqrt().nan_to_num(nan=0.0)


def cross_entropy(predict: Predict, *, label_smoothing: float = 0.0) -> Loss:
    """Build the cross-entropy, −log softmax(z)_y, z = predict(θ, x), in nats.

    Computed as log(1 + eᵐ) of the log-odds m (see `log_odds`): the textbook's slope p_y − 1 is
    rounding in float32 once p_y is near 1, and this one keeps its digits until it underflows.

    With ``label_smoothing`` s in [0, 1] the target is (1 − s)·onehot(y) + s/classes (Szegedy et al.
    2016). The labels y are classes (B,), or, as there, probabilities (B, classes).

    Raises `FuncrobustError` for a ``label_smoothing`` outside [0, 1]; the loss, for labels of
    another shape or type.
    """
    require_predict(predict)
    if not 0 <= label_smoothing <= 1:
        raise FuncrobustError(f"label_smoothing must be in [0, 1], got {label_smoothing}")

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = predict(params, x)
        if logits.ndim > 2:  # classes in the second place, as torch has them
            return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)
        if isinstance(y, Tensor) and y.is_floating_point() and y.shape == logits.shape:
            return soft_cross_entropy_of(logits, _smoothed(y, label_smoothing))
        if logits.ndim < 2 and isinstance(y, Tensor) and y.shape == x.shape[:1]:
            raise FuncrobustError(
                f"the network gives {tuple(logits.shape)} for {len(x)} examples: this loss is of "
                "logits (B, classes)"
            )
        require_labels(y, logits.shape[:-1])
        if not label_smoothing:
            return cross_entropy_of(logits, y)
        onehot = _is(y, logits).to(logits.dtype)
        return soft_cross_entropy_of(logits, _smoothed(onehot, label_smoothing))

    return loss


def _smoothed(shares: Tensor, s: float) -> Tensor:
    return (1 - s) * shares + s / shares.shape[-1] if s else shares


def cross_entropy_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return log(1 + eᵐ), m the log-odds, of logits (B, C) and classes (B,): (B,)."""
    # Not logsigmoid: its second derivative is σ − 1 again. From 40 on m itself is nearer.
    return F.softplus(odds_of(logits, y), threshold=40)


def soft_cross_entropy_of(logits: Tensor, shares: Tensor) -> Tensor:
    """Return −Σ_j t_j·log p_j of logits (B, C) and shares t (B, C), of which one class is most."""
    u, log_p_k = relative(logits, shares.argmax(-1))
    return -(shares * u).sum(-1) - shares.sum(-1) * log_p_k


def relative(logits: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return u_j = z_j − z_k (B, C) and log p_k (B,), by which log p_j = u_j + log p_k.

    Where p_k is near 1, both keep the digits, and the slope, that log p_k itself has not: sums over
    the other classes are then sums of small numbers, not differences of large ones. u_k is the
    constant 0.
    """
    u = logits - logits.gather(-1, k.unsqueeze(-1))
    return u.masked_fill(_is(k, logits), 0.0), -cross_entropy_of(logits, k)


def _is(k: Tensor, logits: Tensor) -> Tensor:
    """True in the place of class k: (B,), (B, C) -> (B, C)."""
    # Not one_hot, which looks at k's values: vmap has none to look at.
    return torch.arange(logits.shape[-1], device=k.device) == k.unsqueeze(-1)


def margin(predict: Predict) -> Loss:
    """Build the margin, max_{j≠y} z_j − z_y.

    Carlini & Wagner 2017 (arXiv:1608.04644), their f₆ without the clip and the other way round.
    Positive where x is misclassified, 0 at a tie. Ascending it fools the network away from y; with
    ``targeted=True`` a perturbation descends it, toward y.
    """
    require_predict(predict)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        own, others = own_and_others(predict(params, x), y)
        return others.amax(-1) - own

    return loss


def logit(predict: Predict, *, guidance: float = 0.0) -> Loss:
    """Build the negative logit, −z_y − g·log p_y, z = predict(θ, x): descend it to raise z_y.

    ``guidance`` g ≥ 0, 0 unless given, adds the classifier's own log p_y: where z_y is trained to
    restore (see `restoration`), what is drawn is more decidedly of the class, and past a point
    exaggerated. After the classifier guidance of Dhariwal & Nichol 2021 (arXiv:2105.05233), whose
    scale is a·g/σ² at noise σ and ψ's step a.

    Of a network that ends in features (`funcrobust.models.representation`) z_y is coordinate y of
    the representation: what feature painting raises (Santurkar et al. 2019, arXiv:1906.09453).
    """
    require_predict(predict)
    require_finite("guidance", guidance)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = predict(params, x)
        require_labels(y, logits.shape[:-1])
        value = -logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        if not guidance:
            return value
        return value + guidance * cross_entropy(lambda *_: logits)(params, x, y)

    return loss


def entropy(predict: Predict) -> Loss:
    """Build the entropy −Σ p·log p of p = softmax(predict(θ, x)), in nats, in [0, log classes].

    The label y is not used. Descended by ψ it sharpens whichever class is likeliest.
    """
    require_predict(predict)

    def loss(params: Params, x: Tensor, _y: Tensor) -> Tensor:
        logits = predict(params, x)
        u, log_p_k = relative(logits, logits.argmax(-1))
        return -_mean_of(u, (u + log_p_k.unsqueeze(-1)).exp()) - log_p_k

    return loss


def away_from(reference: Tensor, mask: Tensor | None = None) -> Loss:
    """Build ‖m ⊙ (x − r)‖₂ per example, r the ``reference`` image (B, C, H, W), m the ``mask``.

    Neither θ nor y is used. Madry's vision applications add it, with m the known pixels, to the
    cross-entropy that ψ descends. Its slope at x = r is taken as 0.
    """

    def loss(_params: Params, x: Tensor, _y: Tensor) -> Tensor:
        return safe_norm(x - reference if mask is None else (x - reference) * mask)

    return loss


def kl_divergence(predict: Predict, reference: Tensor) -> Loss:
    """Build KL(softmax(r) ‖ softmax(z)), z = predict(θ, x), r the ``reference`` logits (B, C).

    In nats, ≥ 0. The label y is not used. What TRADES ascends around x, with r the logits there.
    """
    require_predict(predict)

    def loss(params: Params, x: Tensor, _y: Tensor) -> Tensor:
        return kl(reference, predict(params, x))

    return loss


def distillation(
    predict: Predict, teacher: Callable[[Tensor], Tensor], *, hard: float = 0.0
) -> Loss:
    """Build KL(softmax(t) ‖ softmax(z)) + ``hard``·CE(z, y), t the ``teacher``'s logits, held.

    z = predict(θ, x); in nats. The divergence is 0 with a slope of 0 where θ is the teacher: the
    way to keep what a network does, on images or, inside `adversarial`, on what attacks it, while
    another term changes it. An attack on it does not go through the teacher, who looks at x̂; for
    one that looks at the clean images build `kl_divergence` on its logits there. The labels y count
    through the cross-entropy alone. Hinton et al. 2015 (arXiv:1503.02531) at temperature 1, with
    their weighted average of the two.
    """
    require_predict(predict)
    require_finite("hard", hard)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = predict(params, x)
        kept = kl(teacher(x).detach(), logits)
        return kept + hard * cross_entropy(lambda *_: logits)(params, x, y) if hard else kept

    return loss


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_j p_j·(u_j − v_j) + log p_k − log q_k per example: (B, C), (B, C) -> (B,).

    p and q are the softmax of ``reference`` and ``logits``, u and v their logits less that of k,
    the class that p says is likeliest (see `relative`).
    """
    k = reference.argmax(-1)
    (u, log_p_k), (v, log_q_k) = relative(reference, k), relative(logits, k)
    return _mean_of(u - v, (u + log_p_k.unsqueeze(-1)).exp()) + log_p_k - log_q_k


def _mean_of(values: Tensor, p: Tensor) -> Tensor:
    """Σ_j p_j·values_j, to which a class of probability 0 adds 0, with a slope of 0, whatever."""
    # A logit may be −∞, and 0·∞ is NaN: in the slope of p too, if the value stayed.
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖², summed over an image: the ψ document's distance."""
    return squared_norm(a - b)


def l1_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖₁, summed over an image."""
    return flat((a - b).abs()).sum(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """1 − SSIM(a, b), in [0, 2]: (B,), for images (B, C, H, W) in [0, 1] of at least 6×6 pixels.

    Wang et al. 2004 with the 11×11 Gaussian window of σ = 1.5, as torchmetrics computes it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return 1.0 - similarity


DISTANCES: dict[str, Distance] = {"mse": squared_l2, "l1": l1_distance, "ssim": ssim}
"""The ψ document family's distances by the names its code gives them."""
