"""Judges that other libraries bring: networks of ImageNet, for their features.

They know nothing of the data's own classes. Weights come from the library's own address, or from a
file, which is read as `checkpoints.read_foreign` reads one: it chooses no code.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funcrobust.checkpoints import read_foreign
from funcrobust.checkpoints.format import check_finite, parse, single_precision
from funcrobust.checkpoints.loading import fill
from funcrobust.checkpoints.locate import SUFFIX
from funcrobust.core.errors import FuncrobustError, did_you_mean, extra, one_line
from funcrobust.core.images import as_float
from funcrobust.judging import Judge
from funcrobust.models import Normalized

CHANNELS = (1, 3)
"""What these networks take: grey counts as three equal colours."""


class Inception(Judge):
    """Features (B, 2048), and logits (B, 1008) without bias, of torch-fidelity's Inception v3.

    It is the network of the published Fréchet Inception distances and Inception scores, and takes
    bytes: floats are rounded to them, as a file of the image would be.
    """

    batch_size = 50  # 299 pixels a side, whatever the image

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits."""
        x = x if x.dtype == torch.uint8 else (as_float(x).clamp(0, 1) * 255).round().byte()
        features, logits = self.network(_colours(x))
        return features, logits


class TimmFeatures(Judge):
    """Pooled features (B, d) of a timm network, with its own normalisation and size of images.

    The whole image is resized to (H, W) = ``size``, bilinearly, smoothed where it shrinks.
    """

    batch_size = 100

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features, and no logits."""
        x = F.interpolate(_colours(as_float(x)), self.size, mode="bilinear", antialias=True)
        features: Tensor = self.network(x)
        if features.ndim != 2:
            raise FuncrobustError(
                f"this timm network gives no pooled features (B, d) but {tuple(features.shape)}: "
                "take another"
            )
        return features, None


def inception(file: Path | None = None) -> Inception:
    """Build torch-fidelity's ``inception-v3-compat``, with its weights or those of a file of them.

    Raises `FuncrobustError` where the library, the weights or the way to them is missing.
    """
    with extra("study", "the judge inception needs torch-fidelity"):
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torch_fidelity.utils import create_feature_extractor
    weights = _fetched(URL_INCEPTION_V3) if file is None else read_foreign(file)
    # The library would unpickle a file freely. It gets a copy that we have written.
    copy = io.BytesIO()
    torch.save(weights, copy)
    copy.seek(0)
    try:
        network = create_feature_extractor(
            "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, verbose=False,
            feature_extractor_weights_path=copy,
        )  # fmt: skip
    except RuntimeError as error:
        raise FuncrobustError(
            f"{file or 'what was fetched'} does not hold the weights of torch-fidelity's Inception "
            f"({one_line(error)}): give inception:FILE with the file that it is fetched from"
        ) from error
    return Inception(network)


def _fetched(address: str) -> dict[str, Tensor]:
    """Fetch torch-fidelity's weights as it would, but check their hash and run nothing in them."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # which may be for figures alone
            weights: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                address, map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:  # the network, the disk, or a pickle: anything at all
        raise FuncrobustError(
            f"the judge inception lacks its weights, and fetching them failed ({one_line(error)}): "
            f"fetch {address} elsewhere, and give the file as inception:FILE"
        ) from error
    return weights


def timm_features(name: str, file: Path | None = None) -> TimmFeatures:
    """Build timm's network ``name``, with the weights that timm fetches, or those of a file.

    The file, safetensors or torch's, holds the tensors under timm's names; those of the classifier
    are left unread.

    Raises `FuncrobustError` for an unknown name and where timm, the weights or the way to them is
    missing.
    """
    with (
        warnings.catch_warnings(action="ignore"),  # of timm's about torch
        extra("study", f"the judge timm:{name} needs timm"),
    ):
        import timm
    if not timm.is_model(name):
        raise FuncrobustError(
            f"timm has no network {name!r}{did_you_mean(name, timm.list_models())}: "
            "timm.list_models() names them"
        )
    network = _from_timm(timm, name) if file is None else _from_file(timm, name, file)
    data = timm.data.resolve_model_data_config(network)
    return TimmFeatures(Normalized(network, data["mean"], data["std"]), data["input_size"][1:])


def _from_timm(timm: Any, name: str) -> nn.Module:
    try:
        # Some networks would begin at random, with no more than a line in timm's log.
        if not timm.is_model_pretrained(name):
            raise RuntimeError("none are published")
        network: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network, the disk, or a library that is missing
        raise FuncrobustError(
            f"timm has no weights of {name} to give ({one_line(error)}): give a file of them as "
            f"timm:{name}=FILE"
        ) from error
    return network


def _from_file(timm: Any, name: str, file: Path) -> nn.Module:
    tensors = parse(file)[0] if file.suffix == SUFFIX else read_foreign(file)
    check_finite(tensors, file)
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:  # the part of the name after the dot
        raise FuncrobustError(f"timm does not build {name}: {one_line(error)}") from error
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    body = {k: t for k, t in tensors.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    return fill(network, single_precision(body), name, file)


def _colours(x: Tensor) -> Tensor:
    if x.shape[1] not in CHANNELS:
        raise FuncrobustError(f"this judge takes images of 1 or 3 channels, got {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)
