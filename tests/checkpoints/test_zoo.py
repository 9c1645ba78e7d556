"""RobustBench's zoo by name: its classes, files in its forms, and what is said without them."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from cards import MEAN, STD, images, network, require_same_logits
from pickles import WRITERS, Payload
from problems import run_cli
from torch import nn

import funcrobust as fr
from funcrobust import checkpoints, models
from funcrobust.checkpoints.export import export
from funcrobust.models import robustbench_zoo
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import load_classifier, pick_judge

pytest.importorskip("timm")  # robustbench brings it

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A class as the zoo has them: its normalisation inside."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, classes)
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.25))

    def forward(self, x):
        x = self.norm(self.conv((x - self.mu) / self.sigma))
        return self.linear(x.relu().mean((2, 3)))


class Layered(nn.Sequential):
    """As the zoo's ImageNet networks: normalisation is a layer before."""

    def __init__(self):
        normalize = nn.Module()
        normalize.register_buffer("mean", torch.zeros(1))
        super().__init__()
        self.normalize, self.model = normalize, Tiny(1000)


TABLES = {
    ("cifar10", "Linf"): {
        "Tiny2024": {"model": Tiny, "gdrive_id": "file0"},
        "Deck2024": {"model": Tiny, "gdrive_id": ["a", "b"]},
        "Broken2024": {"model": lambda: 1 / 0, "gdrive_id": "file1"},
    },
    ("cifar10", "L2"): {"Tiny2024": {"model": Tiny, "gdrive_id": "file2"}},
    ("cifar100", "corruptions"): {"Hundred2024": {"model": lambda: Tiny(100), "gdrive_id": "x"}},
    ("imagenet", "Linf"): {
        "Large2024": {"model": Layered, "gdrive_id": "y", "preprocessing": "Crop288"},
        "Standard_R50": {"model": Tiny, "gdrive_id": "", "preprocessing": "Res256Crop224"},
    },
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A zoo of tiny networks, nothing in reach, and a folder to work in."""
    monkeypatch.setattr(robustbench_zoo, "_tables", lambda: TABLES)
    monkeypatch.setattr(robustbench_zoo, "_DRIVE", "http://127.0.0.1:1/?id=")  # nobody answers
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = Tiny()
        module.mu.fill_(0.4)
        module(torch.rand(8, 3, 8, 8))
    return module.eval()


def put(folder, content, place="cifar10/Linf/Tiny2024", write=torch.save):
    path = folder / f"{place}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(content, path)
    return path


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FORMS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "args": Payload(print, "no")},
    "module": lambda s: {"state_dict": prefixed("module.", s)},
    "module.model": lambda s: prefixed("module.model.", s),
    "best and last": lambda s: {"best": {n: t + 1 for n, t in s.items()}, "last": s},
    "last, nested": lambda s: {"last": {"state_dict": prefixed("module.", s)}},
    "other parts": lambda s: {
        **s,
        "conv.scores": s["mu"],
        "model_preact_hl1.1.bias": s["mu"],
    },
    "no counters": lambda s: {n: t for n, t in s.items() if not n.endswith("tracked")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("writer", ["zip", "legacy", "plain"])
def test_files_in_the_zoos_forms(tiny, weights, form, writer):
    put(tiny / "models", FORMS[form](weights.state_dict()), write=WRITERS[writer])
    module, card = checkpoints.load("robustbench:Tiny2024")
    x = images(8)
    with torch.no_grad():
        assert torch.equal(module(x), weights(x))
    assert not module.training
    assert card.model == "robustbench:cifar10/Linf/Tiny2024"


def test_a_normalisation_that_the_file_lacks_is_the_classs(tiny, weights):
    state = {n: t for n, t in weights.state_dict().items() if n not in ("mu", "sigma")}
    put(tiny / "models", state)
    module, _ = checkpoints.load("robustbench:Tiny2024")
    weights.mu.fill_(0.5)
    with torch.no_grad():
        assert torch.equal(module(images(8)), weights(images(8)))


def test_half_precision_comes_back_single(tiny, weights):
    put(tiny / "models", weights.half().state_dict())
    module, _ = checkpoints.load("robustbench:Tiny2024")
    assert module(images(8)).dtype == torch.float32


def test_layers_behind_a_normalisation(tiny):
    theirs = Layered()
    put(tiny / "here", theirs.model.state_dict(), "imagenet/Linf/Large2024")
    module, card = checkpoints.load("robustbench:imagenet/Linf/Large2024=here")
    assert torch.equal(module.model.conv.weight, theirs.model.conv.weight)
    assert (card.image_shape, card.num_classes) == ((3, 288, 288), 1000)


@pytest.mark.parametrize(
    ("place", "constraint", "epsilon", "classes"),
    [
        ("cifar10/Linf/Tiny2024", "linf", 8 / 255, 10),
        ("cifar10/L2/Tiny2024", "l2", 0.5, 10),
        ("cifar100/corruptions/Hundred2024", "linf", 8 / 255, 100),
        ("imagenet/Linf/Large2024", "linf", 4 / 255, 1000),
    ],
)
def test_the_card(tiny, place, constraint, epsilon, classes):
    entry = robustbench_zoo.zoo_entry(f"robustbench:{place}")
    put(tiny / "models", entry.make().state_dict(), place)
    _, card = checkpoints.load(f"robustbench:{place}")
    assert (card.constraint, card.epsilon, card.num_classes) == (constraint, epsilon, classes)
    assert f"{card.dataset}/" in place
    assert ("no ball" in card.notes) == ("corruptions" in place)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("robustbench:", "lacks a part: robustbench:NAME or robustbench:NAME=PATH"),
        ("robustbench:=here", "lacks a part"),
        ("robustbench:Tiny2024=", "lacks a part"),
        ("robustbench:../../x", r"unknown dataset of robustbench's zoo '\.\.'"),
        ("robustbench:/etc/passwd", "lacks a part, or has too many: robustbench:NAME"),
        ("robustbench:a/b/c/d", "too many"),
        ("robustbench:cifar10/Linf/", "lacks a part"),
        ("robustbench:cifar10/Tiny2024", "lacks a part"),
        ("robustbench:cifar10/linf/Tiny2024", "did you mean 'Linf'"),
        ("robustbench:cifar10/corruptions_3d/x", "choose from Linf, L2, corruptions"),
        ("robustbench:cifar100/L2/x", "no 'x' for cifar100/L2: say"),
        ("robustbench:Tiny2025", "did you mean 'Tiny2024'"),
        ("robustbench:Hundred2024", "did you mean 'cifar100/corruptions/Hundred2024'"),
        ("robustbench:Tiny\0", r"no 'Tiny\\x00' for cifar10/Linf"),
        ("robustbench:Tiny\n2024", r"no 'Tiny\\n2024'"),
        ("robustbench:" + "x" * 5000, "no 'xxx"),
        ("robustbench:Tiny2024=here\0", r"no such folder: 'here\\x00'"),
        (
            "robustbench:Tiny2024=no\nwhere",
            r"no such folder: 'no\\nwhere', .*Tiny2024.pt is to",
        ),
        ("robustbench:Deck2024", "an ensemble of several files"),
        ("robustbench:imagenet/Linf/Standard_R50", "torchvision's weights"),
    ],
)
def test_names_that_are_not_read(tiny, name, message):
    with pytest.raises(fr.FuncrobustError, match=message) as caught:
        checkpoints.load(name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    assert list(tiny.iterdir()) == []


def test_weights_of_another_network(tiny, weights):
    state = weights.state_dict()
    path = put(tiny / "models", {**state, "linear.weight": torch.ones(7, 4)})
    with pytest.raises(fr.FuncrobustError, match=r"1 of another shape \(linear.weight \(7, 4\)"):
        checkpoints.load("robustbench:Tiny2024")
    torch.save({**state, "more": torch.ones(1)}, path)
    with pytest.raises(fr.FuncrobustError, match=r"1 unexpected \(more\)"):
        checkpoints.load("robustbench:Tiny2024")
    torch.save({**state, "linear.bias": torch.full((10,), torch.nan)}, path)
    with pytest.raises(fr.FuncrobustError, match="NaN"):
        checkpoints.load("robustbench:Tiny2024")


def test_a_class_that_does_not_build(tiny, weights):
    put(tiny / "models", weights.state_dict(), "cifar10/Linf/Broken2024")
    with pytest.raises(fr.FuncrobustError, match=r"does not build here .ZeroDivisionError"):
        checkpoints.load("robustbench:Broken2024")


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_in_a_file_runs(tiny, weights, writer):
    mark = tiny / "mark"
    payload = Payload(open, str(mark), "w")
    path = put(tiny / "models", {**weights.state_dict(), "evil": payload}, write=WRITERS[writer])
    checkpoints.load("robustbench:Tiny2024")
    WRITERS[writer](payload, path)
    with pytest.raises(fr.FuncrobustError, match="holds no tensors"):
        checkpoints.load("robustbench:Tiny2024")
    assert not mark.exists()


def test_without_the_library(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(fr.FuncrobustError, match=r'pip install "funcrobust\[robustbench\]"$'):
        checkpoints.load("robustbench:Carmon2019Unlabeled")


def test_another_model_than_the_name_says(tiny, weights):
    put(tiny / "models", weights.state_dict())
    with pytest.raises(fr.FuncrobustError, match="leave model= out"):
        checkpoints.load("robustbench:Tiny2024", model="preact-tiny")
    with pytest.raises(fr.FuncrobustError, match="cannot be built for 1 channels and 10 classes"):
        models.build("robustbench:Tiny2024", in_channels=1)


# --- fetching -------------------------------------------------------------------------------------


@pytest.fixture
def host(tiny, monkeypatch):
    """A host that sends what is in ``answer``, and announces ``length`` bytes of it."""
    answer = {"body": b"", "length": None, "asked": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer["asked"].append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(answer["length"] or len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(robustbench_zoo, "_DRIVE", f"http://127.0.0.1:{server.server_port}/get?id=")
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_that_is_not_there_is_fetched_once(host, tiny, weights):
    buffer, told = io.BytesIO(), []
    torch.save({"state_dict": weights.state_dict()}, buffer)
    host["body"] = buffer.getvalue()
    for _ in range(2):
        module, _ = checkpoints.load("robustbench:Tiny2024", progress=lambda *a: told.append(a))
        assert torch.equal(module.linear.weight, weights.linear.weight)
    assert host["asked"] == ["/get?id=file0"]
    size = len(host["body"])
    assert told == [("downloading Tiny2024.pt", 0, None), ("downloading Tiny2024.pt", size, size)]
    found = [p.relative_to(tiny).as_posix() for p in tiny.rglob("*") if p.is_file()]
    assert found == ["models/cifar10/Linf/Tiny2024.pt"]
    (tiny / "mine").mkdir()
    checkpoints.load("robustbench:cifar10/L2/Tiny2024=mine")
    assert (tiny / "mine/cifar10/L2/Tiny2024.pt").is_file()


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"<html>too many have fetched it</html>", None, "something else than a PyTorch file"),
        (b"PK\x03\x04 and no more", 10**6, "sent 16 of 1000000 bytes of Tiny2024.pt"),
    ],
)
def test_what_is_not_the_file_is_not_kept(host, tiny, body, length, message):
    host |= {"body": body, "length": length}
    with pytest.raises(fr.FuncrobustError, match=message) as caught:
        checkpoints.load("robustbench:Tiny2024")
    assert "\n" not in str(caught.value)
    assert list(tiny.iterdir()) == []


def test_out_of_reach(tiny):
    done = run_cli("evaluate", "robustbench:Tiny2024", cwd=tiny)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    for part in (
        "no models/cifar10/Linf/Tiny2024.pt", "no answer from 127.0.0.1:1",
        "fetch http://127.0.0.1:1/?id=file0 elsewhere", "=FOLDER",
    ):  # fmt: skip
        assert part in lines[0]
    assert list(tiny.iterdir()) == []


# --- in the commands ------------------------------------------------------------------------------


def test_evaluate_measures_it(tiny, weights):
    put(tiny / "here", weights.state_dict())
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    y = np.arange(20) % 10
    np.savez(tiny / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    done = run_cli(
        "evaluate", "robustbench:Tiny2024=here", "--dataset", "set.npz", "--steps", "2",
        "--device", "cpu", "--json", "-", cwd=tiny,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    with torch.no_grad():
        right = weights(torch.from_numpy(x).permute(0, 3, 1, 2) / 255).argmax(1).numpy() == y
    assert figures["clean"] == pytest.approx(right.mean())
    assert (figures["constraint"], figures["epsilon"]) == ("linf", pytest.approx(8 / 255))


def test_its_label_in_pictures(tiny, weights):
    put(tiny / "a.b", weights.state_dict())
    found = load_classifier("robustbench:Tiny2024=a.b", CPU, Reporter.silent())
    assert found.label == "Tiny2024"


def test_it_judges(tiny, weights):
    put(tiny / "models", weights.state_dict())
    _, card = checkpoints.load("robustbench:Tiny2024")
    judge = pick_judge("robustbench:Tiny2024", "drawer", card, CPU)
    _, logits = judge(images(32))
    torch.testing.assert_close(logits, weights(images(32)), rtol=1e-5, atol=1e-5)


def test_what_is_trained_from_it_needs_the_code_named_again(tiny, weights):
    put(tiny / "models", weights.state_dict())
    module, card = checkpoints.load("robustbench:Tiny2024")
    checkpoints.save(tiny / "mine", module.state_dict(), replace(card, seed=3))
    with pytest.raises(fr.FuncrobustError, match="--model robustbench:cifar10/Linf/Tiny2024"):
        checkpoints.load(tiny / "mine")
    again, _ = checkpoints.load(tiny / "mine", model=card.model)
    assert torch.equal(again.linear.weight, weights.linear.weight)
    assert torch.equal(again.mu, weights.mu)


def test_a_file_anywhere_as_a_network_of_the_zoo(tiny, weights):
    path = put(tiny, prefixed("module.", weights.state_dict()), "mine")
    module, card = checkpoints.load(path, model="robustbench:cifar10/L2/Tiny2024")
    assert torch.equal(module.linear.weight, weights.linear.weight)
    assert (card.dataset, card.constraint) == ("cifar10", "l2")


def test_export(tiny, weights):
    put(tiny / "models", weights.state_dict())
    done = run_cli("export", "robustbench:Tiny2024", "out", "--to", "robustbench", cwd=tiny)
    assert done.returncode == 2
    assert "is robustbench's own network" in done.stderr
    done = run_cli("export", "robustbench:Tiny2024", "net.pt", cwd=tiny)
    assert done.returncode == 0, done.stderr
    again, _ = checkpoints.load(tiny / "net.pt", model="robustbench:Tiny2024")
    assert torch.equal(again.linear.weight, weights.linear.weight)


# --- with the library -----------------------------------------------------------------------------


def test_what_is_exported_comes_back_by_name(tmp_path, robustbench):
    module, card = network("preact-resnet18", mean=MEAN, std=STD)
    exported = export(module, card, tmp_path, to="robustbench")
    name = f"robustbench:cifar10/L2/Rice2020Overfitting={tmp_path}"
    again, its_card = checkpoints.load(name)
    theirs = eval(exported.load, {"load_model": robustbench.load_model})
    x = images()
    with torch.no_grad():
        assert torch.equal(again(x), theirs(x))
    require_same_logits(module, again)
    assert (its_card.image_shape, its_card.num_classes) == (card.image_shape, 10)
