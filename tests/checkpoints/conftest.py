"""One small network, and its checkpoint."""

from __future__ import annotations

import pytest
import torch
from cards import CARD

from funcrobust import checkpoints, models


@pytest.fixture(scope="module")
def network():
    """A network whose buffers have moved: weights alone would not be enough."""
    net = models.build("preact-tiny", seed=3)
    with torch.no_grad():
        net(torch.rand(8, 3, 32, 32))
    return net.eval()


@pytest.fixture
def saved(tmp_path, network):
    return checkpoints.save(tmp_path / "net.safetensors", network.state_dict(), CARD)
