"""How good made images are, as an independent classifier sees them.

The features are those its last linear layer reads. A classifier that made the images, or was
attacked to make them, must not judge them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.images import as_float
from funcrobust.models import head, representation


@dataclass(frozen=True)
class Seen:
    """What a judge saw in N images: ``features`` (N, d), ``labels`` (N,) as it classifies them."""

    features: Tensor
    labels: Tensor


def look(
    judge: nn.Module,
    x: Tensor,
    *,
    batch_size: int = 250,
    advance: Callable[[int], object] = lambda _: None,
) -> Seen:
    """Show images (N, C, H, W), uint8 or float in [0, 1], to a classifier in evaluation mode.

    ``advance`` is told the number of images of every batch.
    """
    body, last = representation(judge).eval(), head(judge)
    parts = []
    with torch.no_grad():
        for batch in x.split(batch_size):
            parts.append(body(as_float(batch)).float())
            advance(len(batch))
        features = torch.cat(parts)
        return Seen(features, last(features).argmax(-1))


def agreement(seen: Seen, wanted: Tensor) -> float:
    """Return the share of images that the judge classifies as ``wanted`` (N,)."""
    return float((seen.labels == wanted).double().mean())


def frechet_distance(real: Seen, made: Seen) -> float:
    """‖μ − μ′‖² + tr(Σ + Σ′ − 2(ΣΣ′)^½) between two Gaussians fitted to the features.

    Heusel et al. 2017 (arXiv:1706.08500), equation 6, as torchmetrics computes it; theirs takes an
    Inception network's features, ours the judge's, so the numbers compare with one another only.
    It is biased upwards in small samples: compare at equal numbers of images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _require(real, made, 2)
    metric: Any = FrechetInceptionDistance(feature=_AsIs(real.features.shape[1]))
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
    try:
        from torch_fidelity.metric_prc import prc_features_to_metric
    except ImportError:
        raise FuncrobustError(
            "precision and recall need torch-fidelity: pip install funcrobust[study]"
        ) from None
    _require(real, made, neighbours + 1)
    found = prc_features_to_metric(
        made.features, real.features, prc_neighborhood=neighbours, prc_batch_size=10_000,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    return float(found["precision"]), float(found["recall"])


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
