"""The command certify, on a classifier of the digits."""

from __future__ import annotations

import json

import pytest
from problems import run_cli

SMALL = ("--sigma", "0.2", "--samples", "100", "--choosing", "20", "--examples", "60")


def certified(run, *words):
    done = run_cli("certify", str(run), *SMALL, *words, "--json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def figures(digits_run):
    return certified(digits_run[0])


def test_figures_are_those_of_the_images(figures):
    images = figures["images"]
    assert len(images["places"]) == figures["examples"] == 60
    assert images["places"] == sorted(images["places"]) != list(range(60))
    right = [a == b for a, b in zip(images["certified"], images["label"], strict=True)]
    for row in figures["certified"]:
        reaches = [r >= row["radius"] for r in images["radius"]]
        expected = sum(a and b for a, b in zip(right, reaches, strict=True)) / 60
        assert row["accuracy"] == pytest.approx(expected)
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert [row["radius"] for row in figures["certified"]] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert figures["abstains"] == images["certified"].count(-1) / 60
    assert max(images["radius"]) <= figures["largest_radius"] < 0.4
    shares = [row["accuracy"] for row in figures["certified"]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.3, "a robust network withstands noise"
    assert figures["smoothed"]["accuracy"] == pytest.approx(
        sum(a == b for a, b in zip(images["smoothed"], images["label"], strict=True)) / 60
    )


def test_what_is_certified_and_what_is_predicted_do_not_differ(figures):
    """Both from the same copies: a class with more than half of them has the most of them."""
    images = figures["images"]
    both = list(zip(images["certified"], images["smoothed"], strict=True))
    assert sum(-1 not in pair for pair in both) > 20
    assert all(a == b for a, b in both if -1 not in (a, b))


def test_the_same_again_and_another_seed(figures, digits_run):
    assert certified(digits_run[0]) == figures
    other = certified(digits_run[0], "--seed", "1")["images"]
    assert other["places"] != figures["images"]["places"]


def test_a_table_a_picture_and_a_file(digits_run, tmp_path):
    png, file = tmp_path / "c.png", tmp_path / "c.json"
    done = run_cli(
        "certify", str(digits_run[0]), *SMALL, "--radii", "0.3", "--radii", "1/8", "--radii", "2",
        "--png", str(png), "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "60 random test images of 397",
        "σ = 0.2",
        "radius 0.125",
        "95 % interval",
    ):
        assert words in done.stdout
    assert "warning: some radii are above it" in done.stdout
    figures = json.loads(file.read_text())
    assert [row["radius"] for row in figures["certified"]] == [0.125, 0.3, 2.0]
    assert figures["certified"][-1] == {"radius": 2.0, "accuracy": 0.0, "low": 0.0, "high": 0.0}
    assert png.read_bytes().startswith(b"\x89PNG")


def test_of_figures_alone_a_warning_is_still_one(digits_run):
    few = ("--samples", "40", "--choosing", "5", "--examples", "500", "--radii", "2")
    done = run_cli("certify", str(digits_run[0]), *few, "--json", "-")
    assert json.loads(done.stdout)["examples"] == 397
    assert done.stderr.splitlines() == [
        "warning: some radii are above it, whatever the network: take more --samples"
    ]
    assert "on digits, all 397 test images" in run_cli("certify", str(digits_run[0]), *few).stdout
