"""The JSON of every command that measures a classifier says of what, by what and where."""

from __future__ import annotations

import hashlib
import json

import pytest
from problems import run_cli

from funcrobust.checkpoints import shipped

HEADING = {
    "checkpoint", "sha256", "model", "dataset", "examples", "seed", "precision", "device",
    "versions",
}  # fmt: skip
WORDS = {
    "evaluate": ["--attack", "pgd", "--no-checks", "--no-page"],
    "certify": ["--sigma", "0.1", "--samples", "10", "--choosing", "4"],
    "corruptions": ["--corruption", "contrast", "--severity", "1"],
    "minimum-norm": ["--attack", "deepfool-linf"],
}


@pytest.mark.parametrize("command", WORDS)
def test_a_json_says_what_was_measured_and_on_what(request, command):
    if command == "corruptions":  # of images of CIFAR's size alone
        request.getfixturevalue("cifar")
        name, file, dataset = "cifar10-linf-tiny", shipped()["cifar10-linf-tiny"], "cifar10"
    else:
        run = request.getfixturevalue("digits_run")[0]
        name, file, dataset = str(run), run / "checkpoint.safetensors", "digits"
    done = run_cli(command, name, *WORDS[command], "--examples", "9", "--seed", "3", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.keys() >= HEADING
    assert figures["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert figures["checkpoint"] == name
    assert (figures["examples"], figures["seed"], figures["dataset"]) == (9, 3, dataset)
    assert figures["precision"] in ("fp32", "bf16")  # what was taken, not auto
    assert {"funcrobust", "torch"} <= figures["versions"].keys()
