"""CIFAR's original residual networks (He et al. 2016, arXiv:1512.03385, section 4.2).

Activation after the sum, 3x3 everywhere, shortcuts without parameters: of another make than the
pre-activation family, and so a second opinion where one is wanted.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.models.network import Network


class BasicBlock(nn.Module):
    """``act(shortcut(x) + bn2(conv2(act(bn1(conv1(x))))))``, (B, in, H, W) to (B, out, H/s, W/s).

    The shortcut is option A: every s-th pixel, and zeros for the channels that are new.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        thinned = x[..., :: self.stride, :: self.stride]
        before = self.added // 2
        shortcut = F.pad(thinned, (0, 0, 0, 0, before, self.added - before))
        activated: Tensor = self.act(out + shortcut)
        return activated


def resnet(*, depth: int = 20, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return ResNet-``depth``: three stages of (depth - 2) / 6 blocks, 16, 32 and 64 wide.

    Images (B, C, H, W), normalised, of any size; logits (B, num_classes).
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise FuncrobustError(f"this ResNet's depth is 6n + 2 (8, 14, 20, 32, ...), got {depth}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        act=nn.ReLU(),
    )
    inputs = 16
    for number, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        rest_of_it = (BasicBlock(width, width, 1) for _ in range(count - 1))
        layers[f"layer{number}"] = nn.Sequential(BasicBlock(inputs, width, stride), *rest_of_it)
        inputs = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(layers)


# 0.27 M parameters, 41 M multiplications an image.
NETWORKS = {"resnet20": Network(partial(resnet, depth=20))}
