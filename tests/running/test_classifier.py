"""What a classifier is called in pictures and tables."""

from __future__ import annotations

import pytest
from cards import CARD

from funcrobust.running.classifier import Classifier


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("runs/eps0.5", "eps0.5"), ("runs/eps0.5/", "eps0.5"), ("cifar10-linf-small",) * 2,
        ("runs/eps0.5/checkpoint.safetensors", "eps0.5"), ("a/net.safetensors", "net"),
        ("a/net-1.5.pt", "net-1.5"), ("net.pth.tar", "net"), ("net.pkl", "net"),
        ("checkpoint.safetensors", "preact-tiny"), (".", "preact-tiny"),
    ],
)  # fmt: skip
def test_a_label_is_a_folders_whole_name_or_a_files_without_its_kind(name, label):
    assert Classifier(name, CARD, None, None).label == label
