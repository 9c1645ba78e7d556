"""Judges by name: what a name means, other libraries' networks, and what is said without them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from pickles import Payload
from problems import run_cli
from safetensors.torch import save_file
from torch import nn

import funcrobust as fr
from funcrobust import checkpoints, judging
from funcrobust.running import extractors
from funcrobust.running.classifier import JUDGE, pick_judge, pick_judges
from funcrobust.running.judge_names import JudgeName, read_judge_name

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "kind", "name", "file"),
    [
        ("cifar10-standard-small", "checkpoint", "cifar10-standard-small", None),
        ("runs/inception", "checkpoint", "runs/inception", None),
        ("inception", "inception", "inception", None),
        ("inception:a:b=c.pth", "inception", "inception", "a:b=c.pth"),
        ("timm:resnet10t.c3_in1k", "timm", "resnet10t.c3_in1k", None),
        ("timm:resnet10t=a=b.pth", "timm", "resnet10t", "a=b.pth"),
    ],
)
def test_names(text, kind, name, file):
    assert read_judge_name(text) == JudgeName(kind, name, file and Path(file))


@pytest.mark.parametrize("text", ["inception:", "timm", "timm:", "timm:=a.pth", "timm:resnet10t="])
def test_names_that_lack_a_part(text):
    with pytest.raises(fr.FuncrobustError, match=r"lacks .*:"):
        read_judge_name(text)


# --- Inception ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the form of the published file: no counters of batch norm in it.

    Larger than torch's own initial ones, under which no image could be told from another.
    """
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    cls = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url"),
        mock.patch.object(cls, "load_state_dict"),
    ):
        network = cls("inception-v3-compat", ["2048"])
    weights = network.state_dict()
    draw = torch.Generator().manual_seed(0)
    for value in weights.values():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draw)
    weights["fc.weight"].mul_(20)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({k: t for k, t in weights.items() if "num_batches_tracked" not in k}, path)
    return path


def test_inception_is_that_of_torch_fidelity(inception_file):
    """Features and logits to the bit, and the score."""
    import torch_fidelity

    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=draw)
    judge = extractors.inception(inception_file)
    seen = judging.look(judge, x)
    network = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception_file),
    )  # fmt: skip
    features, logits = network(x)
    assert features.shape == (6, 2048)
    assert features.std(0).mean() > 1e-3, "images that differ"
    assert torch.equal(seen.features, features)
    assert torch.equal(seen.logits, logits)
    assert seen.labels.shape == (0,)
    theirs = torch_fidelity.calculate_metrics(
        input1=_Images(x), isc=True,
        isc_splits=2, cuda=False, verbose=False, save_cpu_ram=True, batch_size=6,
        feature_extractor_weights_path=str(inception_file),
    )  # fmt: skip
    score = judging.inception_score(seen, splits=2)
    assert score == pytest.approx(tuple(theirs.values()), rel=1e-6)
    assert score[0] > 1.001


class _Images(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


class Stub(nn.Module):
    """Takes what torch-fidelity's Inception takes, and keeps it."""

    def forward(self, x):
        self.seen = x
        return x.float().flatten(1), x.float().flatten(1)


def test_inception_is_shown_three_bytes_a_pixel():
    judge = extractors.Inception(Stub())
    x = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.2]).view(1, 1, 2, 2)
    judging.look(judge, x)
    assert judge.network.seen.dtype == torch.uint8
    assert judge.network.seen.shape == (1, 3, 2, 2)
    assert judge.network.seen[0, 2].flatten().tolist() == [0, 0, 1, 255]
    bytes_ = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    judging.look(judge, bytes_)
    assert torch.equal(judge.network.seen, bytes_)
    judging.look(judge, bytes_ / 255)
    assert torch.equal(judge.network.seen, bytes_), "what as_float made of bytes"
    with pytest.raises(fr.FuncrobustError, match="1 or 3 channels"):
        judging.look(judge, torch.rand(1, 4, 2, 2))


def test_a_file_of_inception_runs_nothing(inception_file, tmp_path):
    """torch-fidelity itself would run what is in it."""
    canary, path = tmp_path / "ran", tmp_path / "weights.pth"
    weights = torch.load(inception_file, weights_only=True)
    torch.save({**weights, "payload": Payload(Path.touch, canary)}, path)
    extractors.inception(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "it would have"


def test_another_network_is_not_inception(tmp_path):
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(fr.FuncrobustError, match=r"weights\.pth does not hold the weights of"):
        extractors.inception(path)


def test_inception_out_of_reach(digits_run, tmp_path, monkeypatch):
    """One line that says what to do, and nothing is left behind, not even in torch's cache."""
    pytest.importorskip("torch_fidelity")
    cache, cwd = tmp_path / "cache", tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(cache))

    def unreachable(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    said = run_cli("apply", "generation", str(digits_run[0]), "--judge", "inception", cwd=cwd)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert said.stderr.startswith("error: the judge inception lacks its weights")
    assert "no route to host" in said.stderr
    assert "inception:FILE" in said.stderr
    assert not list(cwd.iterdir())
    assert not [path for path in cache.rglob("*") if path.is_file()]


# --- timm ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm_network():
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t").eval()
    for part in network.modules():  # else the residual branches are 0
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.running_mean.uniform_(-0.1, 0.1)
    return network


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_from_a_file(timm_network, tmp_path, suffix):
    """What timm's network gives before its classifier, of images that timm's numbers prepare."""
    import timm

    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(timm_network.state_dict(), path)
    x = torch.rand(2, 3, 32, 32)
    data = timm.data.resolve_model_data_config(timm_network)
    large = nn.functional.interpolate(
        x, data["input_size"][1:], mode="bilinear", align_corners=False
    )
    mean, std = (torch.tensor(data[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        maps = timm_network.forward_features((large - mean) / std)
    seen = judging.look(extractors.timm_features("resnet10t", path), x)
    assert seen.features.shape == (2, 512)
    assert torch.allclose(seen.features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert (seen.features[0] - seen.features[1]).abs().max() > 1e-2
    assert seen.logits is None
    assert seen.labels.shape == (0,)


def test_a_file_that_does_not_fit(timm_network, tmp_path):
    path = tmp_path / "weights.pth"
    weights = timm_network.state_dict()
    weights.pop("conv1.0.weight")
    torch.save(weights, path)
    with pytest.raises(fr.FuncrobustError, match=r"1 missing \(conv1\.0\.weight\)"):
        extractors.timm_features("resnet10t", path)
    with pytest.raises(fr.FuncrobustError, match=r"timm does not build resnet10t\.nonsense"):
        extractors.timm_features("resnet10t.nonsense", path)
    with pytest.raises(fr.FuncrobustError, match="cannot read"):
        extractors.timm_features("resnet10t", tmp_path / "none.safetensors")
    weights["conv1.0.weight"] = torch.full((24, 3, 3, 3), torch.nan)
    torch.save(weights, path)
    with pytest.raises(fr.FuncrobustError, match="NaN"):
        extractors.timm_features("resnet10t", path)


def test_timm_out_of_reach(monkeypatch):
    timm = pytest.importorskip("timm")

    def unreachable(*_args, pretrained, **_kwargs):
        assert pretrained
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(fr.FuncrobustError, match=r"\(no route to host\).*timm:resnet10t=FILE"):
        extractors.timm_features("resnet10t")
    monkeypatch.setattr(timm, "is_model_pretrained", lambda _: False)
    with pytest.raises(fr.FuncrobustError, match="none are published"):
        extractors.timm_features("resnet10t")
    with pytest.raises(fr.FuncrobustError, match="did you mean 'resnet10t'"):
        extractors.timm_features("resnet10")


@pytest.mark.parametrize("library", ["timm", "torch_fidelity"])
def test_a_library_that_is_missing(monkeypatch, library):
    for name in [library, "torch_fidelity.feature_extractor_inceptionv3", "torch_fidelity.utils"]:
        monkeypatch.setitem(sys.modules, name, None)
    build = {"timm": lambda: extractors.timm_features("resnet10t"),
             "torch_fidelity": extractors.inception}  # fmt: skip
    with pytest.raises(fr.FuncrobustError, match=r'pip install "funcrobust\[study\]"'):
        build[library]()


# --- picked -------------------------------------------------------------------------------------


def test_several_judges(digits_run, inception_file):
    run = str(digits_run[0])
    card = checkpoints.load(run)[1]
    by_file = f"inception:{inception_file}"
    found = pick_judges((run, "none", by_file, run), "drawer", card, CPU)
    assert {name: judge.classifies for name, judge in found.items()} == {run: True, by_file: False}
    assert pick_judges(("none",), "drawer", card, CPU) == {}
    assert pick_judges((), "drawer", card, CPU) == {}, "the shipped one does not know digits"
    cifar = checkpoints.load(JUDGE)[1]
    assert list(pick_judges((), "drawer", cifar, CPU)) == [JUDGE]


def test_judges_that_do_not_fit(digits_run):
    card = checkpoints.load(digits_run[0])[1]
    with pytest.raises(fr.FuncrobustError, match=r"no checkpoint 'Inception'.*: inception, timm:"):
        pick_judge("Inception", "drawer", card, CPU)
    of_four = replace(card, image_shape=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4)
    with pytest.raises(fr.FuncrobustError, match="1 or 3 channels, unlike drawer"):
        pick_judge("inception", "drawer", of_four, CPU)
