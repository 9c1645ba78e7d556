"""One small network, and its checkpoint; and robustbench, which reads others."""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec

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


@pytest.fixture(scope="module")
def robustbench():
    """The library, with stand-ins for two imports whose packages have moved since."""
    pytest.importorskip("timm")
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("pkg_resources") is None:  # setuptools dropped it in version 81
            stand_in = types.ModuleType("pkg_resources")
            stand_in.resource_filename = lambda _package, name: name
            patch.setitem(sys.modules, "pkg_resources", stand_in)
        if find_spec("autoattack") is None:  # on the index under another name
            moved = pytest.importorskip("pyautoattack")
            patch.setitem(sys.modules, "autoattack", moved)
            patch.setitem(sys.modules, "autoattack.state", moved.state)
        library = pytest.importorskip("robustbench")

        def download(*arguments):
            raise AssertionError("the exported file was not found where it was written")

        patch.setattr(library.utils, "download_gdrive_new", download)
        yield library
