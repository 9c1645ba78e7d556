"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

Parameter names and initialisation are those of the robustness literature since TRADES
(``block1.layer.0.convShortcut``, ..., ``fc``), so that published weights fit without renaming.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.models.network import Network


class WideBlock(nn.Module):
    """Pre-activation block; a changed width is projected from the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.act = nn.ReLU()
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out: Tensor = self.conv2(self.act(self.bn2(self.conv1(activated))))
        return out + shortcut


def wide_resnet(
    *, depth: int = 28, widen: int = 10, num_classes: int = 10, in_channels: int = 3
) -> nn.Sequential:
    """Return WRN-``depth``-``widen``: three groups of (depth - 4) / 6 blocks, no dropout.

    Images (B, C, H, W), normalised, of any size; logits (B, num_classes).
    """
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        raise FuncrobustError(f"a wide ResNet's depth is 6n + 4 (10, 16, 22, 28, ...), got {depth}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
    )
    inputs = 16
    for number, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        outputs = width * widen
        first = WideBlock(inputs, outputs, stride)
        blocks = (WideBlock(outputs, outputs, 1) for _ in range(count - 1))
        layers[f"block{number}"] = nn.Sequential(OrderedDict(layer=nn.Sequential(first, *blocks)))
        inputs = outputs
    layers["bn1"] = nn.BatchNorm2d(inputs)
    layers["act"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, num_classes)
    return _initialized(nn.Sequential(layers))


def _initialized(network: nn.Sequential) -> nn.Sequential:
    """Convolutions ~ N(0, 2 / fan-out) and a zero bias, as TRADES and its successors do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network


# 36.5 M parameters: the large network of the robustness literature.
NETWORKS = {"wrn-28-10": Network(partial(wide_resnet, depth=28, widen=10))}
