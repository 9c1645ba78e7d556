"""The command: its figures by hand, its intervals, the published arrays, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cards import network
from problems import run_cli
from published_sets import use
from scipy import stats

import funcrobust as fr
from funcrobust import checkpoints, models
from funcrobust.commands import corruptions as command
from funcrobust.data import corruptions
from funcrobust.data.corruptions import corrupt
from funcrobust.data.dataset import Arrays

TESTED = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a set of noise (set.npz) and an untrained network (net.safetensors)."""
    folder = tmp_path_factory.mktemp("corruptions")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (TESTED + 10, 32, 32, 3), np.uint8)
    y = rng.permutation(TESTED + 10) % 10
    np.savez(
        folder / "set.npz", x_train=x[:10], y_train=np.arange(10), x_test=x[10:], y_test=y[10:]
    )
    module, card = network("preact-tiny")
    checkpoints.save(folder / "net.safetensors", module.state_dict(), card)
    return folder


def cli(place, *words):
    return run_cli("corruptions", "net.safetensors", "--dataset", "set.npz", *words, cwd=place)


@pytest.fixture(scope="module")
def images(place):
    with np.load(place / "set.npz") as file:
        x, y = (torch.from_numpy(file[key]) for key in ("x_test", "y_test"))
    return x.permute(0, 3, 1, 2).contiguous(), y


@torch.no_grad()
def right(place, x, y):
    module, _ = checkpoints.load(str(place / "net.safetensors"))
    return (module.eval()(x.float() / 255).argmax(-1) == y).double()


def test_figures_by_hand(place, images):
    x, y = images
    done = cli(
        place, "--corruption", "contrast", "--corruption", "gaussian_noise", "--severity", "2",
        "--severity", "5", "--seed", "7", "--examples", "30", "--json", "-", "--png", "p.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    index = torch.randperm(TESTED, generator=fr.generator(7, "test images"))[:30].sort().values
    hits = {
        (name, severity): right(
            place, corrupt(x, name, severity, seed=7)[index], y[index]
        )
        for name in ("contrast", "gaussian_noise") for severity in (2, 5)
    }  # fmt: skip
    for (name, severity), hit in hits.items():
        assert figures["accuracy"][name][str(severity)] == pytest.approx(hit.mean().item())
    each = torch.stack(list(hits.values())).mean(0)
    assert figures["examples"] == 30
    assert figures["mean"] == pytest.approx(each.mean().item())
    clean = right(place, x[index], y[index])
    assert figures["clean"] == pytest.approx(clean.mean().item())
    exact = stats.binomtest(int(clean.sum()), 30).proportion_ci(method="exact")
    assert figures["clean_interval"] == pytest.approx([exact.low, exact.high])
    assert (place / "p.png").stat().st_size > 5000


def test_the_bootstrap_resamples_images_not_columns():
    """Columns that agree say nothing new: the interval is that of the images alone."""
    row = torch.arange(400) % 4 != 0
    same = command._figures(
        command.Found(row, {"fog": dict.fromkeys(range(1, 6), row)}, {}), seed=0
    )
    low, high = same["mean_interval"]
    width = 2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5  # of a mean of 400, by the normal distribution
    assert same["mean"] == 0.75
    assert high - low == pytest.approx(width, rel=0.1)
    assert low < 0.75 < high


def test_a_table_for_a_person(place):
    done = cli(place, "--corruption", "fog", "--severity", "3", "--examples", "8")
    assert done.returncode == 0, done.stderr
    assert (
        "corrupted images: computed, with the constants of CIFAR-10-C's severities" in done.stdout
    )
    assert "accuracy on 8 test images" in done.stdout
    assert "mean corruption accuracy" in done.stdout


def test_published_arrays_are_used_where_they_are(place, images):
    x, y = images
    folder = place / "CIFAR-10-C"
    folder.mkdir()
    turned = x.flip(2)
    rows = torch.cat([turned, x, x, x, turned]).permute(0, 2, 3, 1).numpy()
    np.save(folder / "fog.npy", rows)
    np.save(folder / "labels.npy", np.tile(y.numpy(), 5).astype(np.uint8))
    fog = ("--data-dir", "CIFAR-10-C", "--corruption", "fog")
    done = cli(place, *fog, "--severity", "2", "--severity", "5", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["corrupted_images"] == "CIFAR-10-C"
    assert figures["accuracy"]["fog"]["2"] == figures["clean"]
    expected = right(place, turned, y).mean().item()
    assert figures["accuracy"]["fog"]["5"] == pytest.approx(expected)
    assert "corrupted images: CIFAR-10-C" in cli(place, *fog, "--severity", "1").stdout


def test_a_missing_file_is_said_before_any_corruption_is_measured(place, images, monkeypatch):
    folder = place / "lacking"
    folder.mkdir()
    for name in command.NAMES[:-1]:
        np.save(folder / f"{name}.npy", np.zeros((5 * TESTED, 32, 32, 3), np.uint8))
    monkeypatch.setattr(command, "_measure", lambda *_: pytest.fail("it began"))
    for lacks in ("labels", command.NAMES[-1]):
        done = cli(place, "--data-dir", "lacking")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: cannot read lacking/{lacks}.npy: ")
        np.save(folder / "labels.npy", np.tile(images[1].numpy(), 5).astype(np.uint8))


def test_a_folder_that_nothing_is_read_from_is_refused(place, tmp_path, monkeypatch):
    """The set comes from the cache, so that nobody else looks whether the folder holds it."""
    monkeypatch.setenv("FUNCROBUST_CACHE", str(tmp_path / "cache"))
    with np.load(place / "set.npz") as file:
        names = ("x_train", "y_train", "x_test", "y_test")
        held = Arrays(*(file[name] for name in names), tuple("abcdefghij"))

    def read(folder):
        if not (folder / "batches").exists():
            raise fr.FuncrobustError("no batches")
        return held

    use(monkeypatch, "cifar10", read_folder=read, remotes=(), digests=None, system_folders=())
    for folder in ("set", "typo"):
        (tmp_path / folder).mkdir()
    (tmp_path / "set" / "batches").touch()
    words = ("corruptions", str(place / "net.safetensors"), "--dataset", "cifar10")
    quick = ("--corruption", "fog", "--severity", "1", "--examples", "2")
    for _ in ("from the folder", "from the cache"):
        done = run_cli(*words, *quick, "--data-dir", "set", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "(cache)" in done.stdout
    typo = run_cli(*words, *quick, "--data-dir", "typo", cwd=tmp_path)
    assert (typo.returncode, typo.stderr.count("\n")) == (2, 1)
    assert "--data-dir typo holds no .npy file of CIFAR-10-C, nor cifar10 (no ba" in typo.stderr


def test_names_are_those_there_are():
    assert command.NAMES == corruptions.NAMES
    assert command.SEVERITIES == corruptions.SEVERITIES


def test_gray_images_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 1, 32, 32), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    module = models.build("preact-tiny", num_classes=10, in_channels=1)
    card = checkpoints.Card(
        model="preact-tiny", num_classes=10, image_shape=(1, 32, 32), mean=(0.5,), std=(0.5,),
        dataset="gray",
    )  # fmt: skip
    checkpoints.save(tmp_path / "net.safetensors", module.state_dict(), card)
    done = cli(tmp_path, "--examples", "2")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: CIFAR-10-C's corruptions are made for uint8 images of 3x32x32, got uint8 of 1x32x32"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corruption", "fogg"), "did you mean 'fog'"),
        (("--corruption", "fog", "--corruption", "fog"), "--corruption fog is there twice"),
        (("--severity", "6"), "--severity must be several, each a whole number >= 1 and <= 5"),
        (("--severity", "2", "--severity", "2"), "--severity 2 is there twice"),
        (("--examples", "1"), "--examples must be a whole number >= 2"),
        (("--png", "p.jpg"), "--png must name a .png file"),
    ],
)
def test_bad_options_are_refused_in_one_line(place, words, said):
    done = cli(place, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
