"""What a classifier is called in pictures and tables."""

from __future__ import annotations

import shutil

import pytest
import torch
from cards import CARD

from funcrobust import checkpoints
from funcrobust.commands.evaluate import page
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import Classifier, load_classifier


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


def test_a_mirrored_network_is_not_the_runs_own(tmp_path):
    """Its figures would stand in the run's page and in the table of runs as the run's."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(checkpoints.resolve("cifar10-linf-tiny"), run / "checkpoint.safetensors")
    shutil.copy(
        checkpoints.resolve("cifar10-linf-tiny").with_suffix(".json"), run / "checkpoint.json"
    )
    (run / "config.json").write_text("{}")
    cpu = torch.device("cpu")
    with Reporter.silent() as reporter:
        plain, both = (
            load_classifier(str(run), cpu, reporter, model=model)
            for model in (None, "preact-tiny-flip")
        )
    assert (plain.label, both.label) == ("run", "run-flip")
    assert (plain.as_saved, both.as_saved) == (True, False)
    assert page._own_folder(plain) == run
    assert page._own_folder(both) is None
