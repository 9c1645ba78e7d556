"""How good made images are, as a judge sees them.

A judge gives features, and the logits of classes where it has any. An independent classifier has
both: the features that its last linear layer reads, and an opinion on the data's own classes. A
classifier that made the images, or was attacked to make them, must not judge them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError, extra
from funcrobust.core.images import as_float
from funcrobust.models import head, representation

FEW = 2000
"""Below so many images a Fréchet distance is biased upwards, whatever the features."""


@dataclass(frozen=True)
class Seen:
    """What a judge saw in N images.

    ``features`` (N, d); ``labels`` (N,) as it classifies them, (0,) from a judge with no opinion on
    the data's own classes; ``logits`` (N, K) of whatever classes it knows, or None.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor | None = None

    def part(self, index: Tensor | slice) -> Seen:
        """Return what was seen in some of the images: a slice, or indices that may repeat."""
        labels = self.labels[index] if len(self.labels) else self.labels
        logits = None if self.logits is None else self.logits[index]
        return Seen(self.features[index], labels, logits)


class Judge(nn.Module, ABC):
    """What looks at images, its weights included: a subclass says how.

    ``judge(x)``, x (B, C, H, W) of uint8 or float in [0, 1], returns features (B, d) and logits
    (B, K) or None. Several of them by name: ``funcrobust.running.classifier.pick_judges``.
    """

    classifies = False
    """Whether the logits are those of the data's own classes."""
    batch_size = 250
    """How many images it looks at together, where `judging.look` is not told."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, d) and logits (B, K) or None."""


def as_judge(network: nn.Module) -> Judge:
    """Return a judge as it is; a classifier with a last ``nn.Linear`` becomes one.

    Raises `FuncrobustError` for another network.
    """
    return network if isinstance(network, Judge) else _Classifier(network)


class _Classifier(Judge):
    """A classifier of the data's own classes, in evaluation mode; the given one stays as it is."""

    classifies = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.body, self.last = representation(network), copy.deepcopy(head(network))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.body(as_float(x))
        return features, self.last(features)


def look(
    judge: nn.Module,
    x: Tensor,
    *,
    batch_size: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Seen:
    """Show images (N, C, H, W), uint8 or float in [0, 1], to a judge, or to a classifier.

    It looks in evaluation mode, at ``batch_size`` images together, or as many as it likes.
    ``advance`` is told the number of images of every batch. What was seen is float32.
    """
    judge = as_judge(judge).eval()
    features, logits = [], []
    with torch.no_grad():
        for batch in x.split(batch_size or judge.batch_size):
            found, of_classes = judge(batch)
            features.append(found.float())
            if of_classes is not None:
                logits.append(of_classes.float())
            advance(len(batch))
    scores = torch.cat(logits) if logits else None
    no_opinion = torch.empty(0, dtype=torch.int64, device=x.device)
    labels = scores.argmax(-1) if judge.classifies and scores is not None else no_opinion
    return Seen(torch.cat(features), labels, scores)


def agreement(seen: Seen, wanted: Tensor) -> float:
    """Return the share of images that the judge classifies as ``wanted`` (N,).

    Raises `FuncrobustError` for a judge with no opinion on the data's own classes.
    """
    if len(seen.labels) != len(wanted):
        raise FuncrobustError(
            f"the judge gives {len(seen.labels)} labels for {len(wanted)} images: where it does "
            "not know the data's own classes (inception, timm), ask a classifier of them"
        )
    return float((seen.labels == wanted).double().mean())


def frechet_distance(real: Seen, made: Seen) -> float:
    """‖μ − μ′‖² + tr(Σ + Σ′ − 2(ΣΣ′)^½) between two Gaussians fitted to the features.

    Heusel et al. 2017 (arXiv:1706.08500), equation 6, as torchmetrics computes it. Theirs takes an
    Inception network's features, ours the judge's: numbers of the judge ``inception`` compare with
    the literature's (at its number of images), those of another judge with one another only.
    It is biased upwards in small samples, see `caveat`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _require(real, made, 2)
    # What is given is of all processes already, and one alone may ask.
    metric: Any = FrechetInceptionDistance(
        feature=_AsIs(real.features.shape[1]), sync_on_compute=False
    )
    metric.set_dtype(torch.float64)
    metric.update(real.features.double().cpu(), real=True)
    metric.update(made.features.double().cpu(), real=False)
    return float(metric.compute())


def precision_recall(real: Seen, made: Seen, *, neighbours: int = 3) -> tuple[float, float]:
    """Return (precision, recall) in [0, 1] of made images by nearest neighbours of features.

    Precision is the share of made images within reach of a real one, recall the reverse; an image
    reaches as far as its k-th neighbour of its own kind. Kynkäänniemi et al. 2019
    (arXiv:1904.06991), k = 3, as torch-fidelity computes it.
    """
    with extra("study", "precision and recall need torch-fidelity"):
        from torch_fidelity.metric_prc import prc_features_to_metric
    _require(real, made, neighbours + 1)
    found = prc_features_to_metric(
        made.features, real.features, prc_neighborhood=neighbours, prc_batch_size=10_000,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    return float(found["precision"]), float(found["recall"])


def inception_score(seen: Seen, *, splits: int = 10) -> tuple[float, float]:
    """Return the Inception score exp E_x KL(p(y|x) ‖ p(y)): mean, standard deviation over splits.

    Salimans et al. 2016 (arXiv:1606.03498), section 4, in float64: from 1 to min(K, N / splits).
    The images are shuffled and split, and the deviation is the population's, as torch-fidelity has
    it, so the numbers are its own; but probabilities that underflow count as 0 here, where they
    make NaN there. From the judge ``inception`` they compare with the literature, at equal N: in
    small samples the score is biased downwards.

    Raises `FuncrobustError` for a judge without classes and for fewer images than ``splits``.
    """
    if seen.logits is None:
        raise FuncrobustError("this judge has no class probabilities to take a score from")
    n = len(seen.logits)
    if splits < 1 or n < splits:
        raise FuncrobustError(f"an Inception score in {splits} splits cannot be had of {n} images")
    order = torch.from_numpy(np.random.RandomState(2020).permutation(n)).to(seen.logits.device)
    # Not below the smallest logarithm whose exponential is above 0: 0 · ∞ is NaN.
    log_p = seen.logits[order].double().log_softmax(-1).clamp(min=-700)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        marginal = part.exp().mean(0).log()
        scores.append((part.exp() * (part - marginal)).sum(-1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


def caveat(real: Seen, made: Seen) -> str | None:
    """Say what is to be said beside a Fréchet distance of few images; None where there are enough.

    Enough is at least `FEW`, and at least as many as the features have dimensions: with fewer
    the covariance is singular.
    """
    n = min(len(real.features), len(made.features))
    if n >= max(FEW, real.features.shape[1]):
        return None
    score = "" if made.logits is None else ", the Inception score downwards"
    return f"Fréchet distance of {n} images: biased upwards{score}; compare at equal N only"


class Nearest(NamedTuple):
    """Each of N images' distance to its nearest other, ``distances`` (N,), and ``indices`` (N,)."""

    distances: Tensor
    indices: Tensor


class Copying(NamedTuple):
    """How near the made images come to training images, and how near unseen real ones come.

    A network that copies makes images nearer to the training set than ``held_out`` is: compare
    the two as distributions, in their low quantiles above all.
    """

    made: Nearest
    held_out: Nearest


def nearest(train: Tensor, x: Tensor, *, chunk: int = 4096) -> Nearest:
    """Find the nearest (L2) of ``train`` (M, ...) to each of ``x`` (N, ...).

    Features, or images: uint8 counts as value / 255. In memory are ``chunk`` of each, and
    chunk × chunk distances. Which one is nearest is decided in the tensors' own precision (where
    they differ, the higher), by matrix products, so that near ties may fall either way; how far it
    is, is measured directly: a copy is at 0.

    Raises `FuncrobustError` for shapes that differ and for an empty ``train``.
    """
    if len(train) == 0 or train.shape[1:] != x.shape[1:]:
        raise FuncrobustError(
            f"nearest needs training images, and both of one shape: got {tuple(train.shape)} and "
            f"{tuple(x.shape)}"
        )
    dtype = torch.promote_types(*(as_float(t[:0]).dtype for t in (train, x)))
    parts = [_nearest(train, _rows(part, dtype), chunk) for part in x.split(chunk)]
    return Nearest(*map(torch.cat, zip(*parts, strict=True)))


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return as_float(x).to(dtype).flatten(1)


def _nearest(train: Tensor, x: Tensor, chunk: int) -> Nearest:
    # Around the mean lengths are shorter, and so are the products' roundings.
    center = _rows(train[:chunk], x.dtype).mean(0)
    best = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for first in range(0, len(train), chunk):
        part = _rows(train[first : first + chunk], x.dtype)
        found, where = torch.cdist(x - center, part - center).min(1)
        nearer = found < best
        best, index = torch.where(nearer, found, best), torch.where(nearer, where + first, index)
    return Nearest((x - _rows(train[index], x.dtype)).norm(dim=1), index)


def copying(
    judge: nn.Module, train: Tensor, made: Tensor, held_out: Tensor, *, chunk: int = 4096
) -> dict[str, Copying]:
    """Check made images for copies of training images: in the judge's ``features``, in ``pixels``.

    All are images (N, C, H, W), uint8 or float in [0, 1], each kind any number of them; distances
    are L2, of pixels in units of [0, 1]. ``held_out`` are real images that no training saw, of the
    same distribution as ``train``: test images.

    Raises `FuncrobustError` as `nearest` does.
    """
    features = [look(judge, x).features for x in (train, made, held_out)]
    spaces = {"features": features, "pixels": [train, made, held_out]}
    return {
        space: Copying(nearest(known, new, chunk=chunk), nearest(known, unseen, chunk=chunk))
        for space, (known, new, unseen) in spaces.items()
    }


class _AsIs(nn.Module):
    """Hands torchmetrics the features it would otherwise compute."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def _require(real: Seen, made: Seen, least: int) -> None:
    if min(len(real.features), len(made.features)) < least:
        raise FuncrobustError(f"at least {least} real and made images are needed to compare them")
