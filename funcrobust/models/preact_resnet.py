"""Pre-activation residual networks (He et al. 2016, arXiv:1603.05027).

Parameter names are those of the fast-adversarial-training literature (``conv1``,
``layer1.0.bn1``, ..., ``bn``, ``linear``), so that published weights fit without renaming.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.models.flip_averaged import FLIP, FlipAveraged
from funcrobust.models.network import Network

Stem = Literal["3x3", "4x4-stride2"]
Activation = Callable[[], nn.Module]


class PreActBlock(nn.Module):
    """``x + conv2(act(bn2(conv1(act(bn1(x))))))``, (B, in, H, W) to (B, out, H/stride, W/stride).

    Where the shape changes, the shortcut is a 1x1 projection of the *activated* input (figure 4e
    of the paper and its published code); elsewhere it is the identity of the raw input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.act = activation()
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(self.act(self.bn2(self.conv1(activated))))
        return out + shortcut


def preact_resnet(
    *,
    widths: Sequence[int],
    blocks: Sequence[int],
    stem: Stem = "3x3",
    num_classes: int = 10,
    in_channels: int = 3,
    activation: Activation = nn.ReLU,
    flip: bool = False,
) -> nn.Sequential:
    """Return the network: stem, one stage a width, final BN-act, global average pool, linear.

    Args:
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: residual blocks of each stage.
        stem: ``"3x3"`` keeps the resolution; ``"4x4-stride2"`` halves it, a quarter of the work.
        num_classes: number of logits.
        in_channels: channels of the (normalised) images.
        activation: makes the non-linearity; a smooth one (``nn.Softplus``, ``nn.SiLU``) gives
            the input curvature everywhere.
        flip: average the logits of an image and its mirror image, see `FlipAveraged`.

    Any image of at least 8x8 pixels fits: the pooling is global.
    """
    if len(widths) != len(blocks) or not widths:
        raise FuncrobustError(
            f"widths and blocks need one number a stage each, got {len(widths)} and {len(blocks)}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=_stem(stem, in_channels, widths[0]))
    inputs = widths[0]
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        stride = 1 if number == 1 else 2
        layers[f"layer{number}"] = _stage(inputs, width, count, stride, activation)
        inputs = width
    layers["bn"] = nn.BatchNorm2d(inputs)
    layers["act"] = activation()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(inputs, num_classes)
    return (FlipAveraged if flip else nn.Sequential)(layers)


def _stem(stem: Stem, inputs: int, outputs: int) -> nn.Conv2d:
    if stem == "3x3":
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    if stem == "4x4-stride2":
        return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    raise FuncrobustError(f"unknown stem {stem!r}: use '3x3' or '4x4-stride2'")


def _stage(
    inputs: int, outputs: int, count: int, stride: int, activation: Activation
) -> nn.Sequential:
    first = PreActBlock(inputs, outputs, stride, activation)
    rest = (PreActBlock(outputs, outputs, 1, activation) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


_SHAPES: dict[str, dict[str, Any]] = {
    # 0.31 M parameters. On 2 CPU cores an RS-FGSM step of batch 128 takes 105 ms, and two epochs
    # of CIFAR-10 give 29.8 % against PGD-20.
    "preact-tiny": {"widths": (32, 64, 128), "blocks": (1, 1, 1), "stem": "4x4-stride2"},
    # 1.23 M and 2.76 M parameters: twice and three times as wide.
    "preact-small": {"widths": (64, 128, 256), "blocks": (1, 1, 1), "stem": "4x4-stride2"},
    "preact-medium": {"widths": (96, 192, 384), "blocks": (1, 1, 1), "stem": "4x4-stride2"},
    # 2.78 M parameters: ResNet-18 without its last stage, which has three quarters of its
    # parameters and a quarter of its work.
    "preact-resnet14": {"widths": (64, 128, 256), "blocks": (2, 2, 2)},
    # 11.17 M parameters: the network of fast adversarial training (Wong et al. 2020).
    "preact-resnet18": {"widths": (64, 128, 256, 512), "blocks": (2, 2, 2, 2)},
}

NETWORKS = {
    # Smooth twins. With ReLU the input gradient is piecewise constant but for the softmax: a finite
    # difference of it sees kinks, which no derivative in θ knows of. With SiLU the derivatives of
    # CURE and ψ are the whole truth, for 20 % more time.
    f"{name}{smooth}{flip}": Network(
        partial(preact_resnet, **shape, activation=nn.SiLU if smooth else nn.ReLU, flip=bool(flip))
    )
    for name, shape in _SHAPES.items()
    # The same weights, evaluated on both mirror images: a point of robust accuracy for twice the
    # time of an evaluation and none of training.
    for smooth in ("", "-silu")
    for flip in ("", FLIP)
}
