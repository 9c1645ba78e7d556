"""Checkpoints: exact round trips, no half-written files, and no code run from anybody's file."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tracemalloc
import types

import dill
import pytest
import safetensors.torch
import torch
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.checkpoints import Card
from funcrobust.checkpoints.foreign import _read_stream, _read_zip
from funcrobust.core.errors import FuncrobustError
from funcrobust.files import atomic_write

CARD = Card(
    model="preact-tiny",
    num_classes=10,
    image_shape=(3, 32, 32),
    mean=models.CIFAR10_MEAN,
    std=models.CIFAR10_STD,
    dataset="cifar10",
    class_names=("airplane", "Käfer"),
    command="python cli.py train --seed 3",
    seed=3,
    metrics={"clean": 0.5123, "pgd50x10": 0.29},
)


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


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


# --- round trips --------------------------------------------------------------------------------


def test_round_trip_to_the_bit(saved, network):
    loaded, card = checkpoints.load(saved)
    assert card == CARD
    assert not loaded.training
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.state_dict()["net.bn.num_batches_tracked"] == 1
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))


def test_the_card_is_inside_and_beside(saved):
    beside = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert beside["class_names"] == ["airplane", "Käfer"]
    saved.with_suffix(".json").unlink()
    assert checkpoints.read(saved)[1] == CARD
    assert set(beside["versions"]) == {"torch", "funcrobust"}
    assert beside["created"].endswith("+00:00")


def test_the_suffix_and_the_folder_may_be_left_out(tmp_path, network):
    path = checkpoints.save(tmp_path / "v1.5" / "net", network.state_dict(), CARD)
    assert path == tmp_path / "v1.5" / "net.safetensors"
    assert checkpoints.resolve(tmp_path / "v1.5" / "net") == path
    run = checkpoints.save(tmp_path, network.state_dict(), CARD)
    assert run == tmp_path / "checkpoint.safetensors"
    assert checkpoints.resolve(tmp_path) == run


def test_half_precision_files_load_as_float32(tmp_path, network):
    half = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    path = checkpoints.save(tmp_path / "half.safetensors", half, CARD)
    tensors, _ = checkpoints.read(path)
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(tensors[n], half[n].to(tensors[n].dtype)) for n in half)
    loaded, _ = checkpoints.load(path)
    assert loaded(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_layouts_and_shared_memory(tmp_path):
    base = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "tied": base,
        "tied_again": base,
        "view": base[0],
        "expanded": torch.ones(1).expand(4),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    read, _ = checkpoints.read(checkpoints.save(tmp_path / "t", tensors, CARD))
    assert all(torch.equal(read[n], tensors[n]) for n in tensors)
    assert len(read) == len(tensors)


def test_state_round_trip_keeps_every_precision(tmp_path):
    tensors = {
        "params/w": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(5).double(),
        "step": torch.tensor(12),
        "seen": torch.tensor([True, False]),
        "limit": torch.tensor(float("inf")),
    }
    meta = {"step": 12, "lr": 0.1 + 0.2, "history": [{"epoch": 1, "loss": 2.5}], "name": "ψ"}
    path = checkpoints.save_state(tmp_path / "state.safetensors", tensors, meta)
    read, read_meta = checkpoints.load_state(path)
    assert same(read, tensors)
    assert read_meta == meta
    assert checkpoints.load_state(tmp_path)[1] == meta


def test_a_state_can_be_replaced_while_what_it_held_is_in_use(tmp_path):
    path = checkpoints.save_state(tmp_path / "s", {"w": torch.ones(3)}, {"step": 1})
    old, _ = checkpoints.load_state(path)
    checkpoints.save_state(path, {"w": torch.zeros(3)}, {"step": 2})
    old["w"] += 1
    assert old["w"].tolist() == [2, 2, 2]
    assert checkpoints.load_state(path)[0]["w"].tolist() == [0, 0, 0]


def test_a_checkpoint_is_not_a_state_nor_the_reverse(saved, tmp_path):
    with pytest.raises(FuncrobustError, match="not the state of a run"):
        checkpoints.load_state(saved)
    state = checkpoints.save_state(tmp_path / "s", {}, {})
    with pytest.raises(FuncrobustError, match="no card inside"):
        checkpoints.read(state)


# --- finding ------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch, network):
    folder = tmp_path / "shelf"
    checkpoints.save(folder / "cifar10-tiny.safetensors", network.state_dict(), CARD)
    monkeypatch.setattr(checkpoints.ours, "_shipped_folders", lambda: (folder,))
    return folder


def test_shipped_names(shelf):
    assert checkpoints.shipped() == {"cifar10-tiny": shelf / "cifar10-tiny.safetensors"}
    assert checkpoints.load("cifar10-tiny")[1] == CARD


def test_a_missing_file_lists_what_there_is(shelf):
    with pytest.raises(FuncrobustError, match=r"did you mean 'cifar10-tiny'.*shipped") as caught:
        checkpoints.load("cifar10-tinny")
    assert "\n" not in str(caught.value)
    (shelf / "run").mkdir()
    (shelf / "run" / "log.txt").touch()
    with pytest.raises(FuncrobustError, match=r"no checkpoint.safetensors in .*log.txt"):
        checkpoints.resolve(shelf / "run")


def test_the_projects_own_checkpoints_all_load():
    for name in checkpoints.shipped():
        network, card = checkpoints.load(name)
        assert network(torch.rand(1, *card.image_shape)).shape == (1, card.num_classes)


# --- files that are wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_truncated_files(saved, part):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * part) if isinstance(part, float) else part])
    with pytest.raises(FuncrobustError, match=r"net\.safetensors is truncated or not a"):
        checkpoints.load(saved)


@pytest.mark.parametrize("data", [b"\xff" * 100, b"hello, this is text", pickle.dumps({"a": 1})])
def test_files_of_another_kind(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FuncrobustError, match="not a safetensors file"):
        checkpoints.read(path)


def test_no_card(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(FuncrobustError, match="no card inside"):
        checkpoints.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "3", "[]", "{}", "{", '{"model": "preact-tiny"}', "[" * 100_000]
    + [
        json.dumps({**dataclasses.asdict(CARD), **change})
        for change in (
            {"num_classes": "ten"},
            {"model": 3},
            {"image_shape": [3, 32]},
            {"image_shape": None},
            {"mean": [0.5]},
            {"std": ["a", "b", "c"]},
            {"metrics": [1]},
        )
    ],
)
def test_cards_that_are_none(tmp_path, text):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"funcrobust.card": text})
    with pytest.raises(FuncrobustError, match=r"w\.safetensors has a card that is not one"):
        checkpoints.load(path)


def test_a_later_versions_card_is_understood(tmp_path):
    text = json.dumps({**dataclasses.asdict(CARD), "colour": "blue"})
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"funcrobust.card": text})
    assert checkpoints.read(path)[1] == CARD


def test_another_architecture_is_named_in_one_line(tmp_path, network):
    card = dataclasses.replace(CARD, model="preact-small")
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card)
    with pytest.raises(FuncrobustError, match=r"of another shape.*instead of") as caught:
        checkpoints.load(path)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert "\n" not in str(caught.value)
    card = dataclasses.replace(CARD, model="preact-resnet18")
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card)
    with pytest.raises(FuncrobustError, match=r"\d+ missing \(net\.layer1\.1\.bn1\.weight, "):
        checkpoints.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(tmp_path, network, value):
    broken = {**network.state_dict(), "net.bn.weight": torch.full((128,), value)}
    with pytest.raises(FuncrobustError, match=r"net\.bn\.weight"):
        checkpoints.save(tmp_path / "n", broken, CARD)
    assert list(tmp_path.iterdir()) == []
    metadata = {"funcrobust.card": json.dumps(dataclasses.asdict(CARD))}
    safetensors.torch.save_file(broken, tmp_path / "n.safetensors", metadata)
    with pytest.raises(FuncrobustError, match=r"net\.bn\.weight"):
        checkpoints.load(tmp_path / "n")


def test_what_json_cannot_hold(tmp_path):
    for metrics in ({"clean": float("nan")}, {"clean": "x" and object()}):
        with pytest.raises(FuncrobustError, match="finite numbers"):
            checkpoints.save(tmp_path / "n", {}, dataclasses.replace(CARD, metrics=metrics))
    card = dataclasses.replace(CARD, metrics={"clean": torch.tensor(0.5)})  # type: ignore[dict-item]
    assert checkpoints.read(checkpoints.save(tmp_path / "n", {}, card))[1].metrics == {"clean": 0.5}


def test_tensors_without_values(tmp_path):
    with pytest.raises(FuncrobustError, match="cannot write"):
        checkpoints.save_state(tmp_path / "n", {"w": torch.empty(2, device="meta")}, {})


def test_a_file_does_not_choose_which_code_is_called(tmp_path, monkeypatch):
    """A card may name any importable function; only the caller may agree to it."""
    (tmp_path / "own_code.py").write_text(
        "import pathlib\nfrom torch import nn\npathlib.Path('ran').touch()\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    card = dataclasses.replace(CARD, model="own_code:net")
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    weights = models.Normalized(net, CARD.mean, CARD.std).state_dict()
    path = checkpoints.save("n", weights, card)
    with pytest.raises(FuncrobustError, match="if you trust it"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()
    loaded, _ = checkpoints.load(path, model="own_code:net")
    assert same(loaded.state_dict(), weights)
    with pytest.raises(FuncrobustError, match="holds a own_code:net, not a preact-tiny"):
        checkpoints.load(path, model="preact-tiny")


# --- atomic writes ------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = tmp_path / "f.txt"
    atomic_write(path, "old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, call, fail)
    expected = FuncrobustError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path, saved):
    """A real error from the system, in the middle of the data."""
    old = saved.read_bytes()
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FuncrobustError, match=r"cannot write .*File too large"):
            checkpoints.save(saved, {"w": torch.ones(100_000)}, CARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == old
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    code = (
        "import os, sys\nfrom funcrobust.files import atomic_write\n"
        "os.replace = lambda *_: os._exit(9)\natomic_write(sys.argv[1], 'new')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FuncrobustError, match=r"cannot write .*choose a folder"):
        checkpoints.save(tmp_path / "file" / "net", {}, CARD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FuncrobustError, match="cannot write"):
        atomic_write(tmp_path / "folder", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_text_bytes_links_and_permissions(tmp_path):
    target, link = tmp_path / "a" / "target", tmp_path / "link"
    atomic_write(target, "ψ\n")
    assert target.read_bytes() == "ψ\n".encode()
    link.symlink_to(target)
    atomic_write(link, b"\x00")
    assert link.is_symlink()
    assert target.read_bytes() == b"\x00"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


# --- other people's files -----------------------------------------------------------------------


class Payload:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(mark):
    """Ways of having a file called ``mark`` made by whoever unpickles them."""
    return {
        "system": Payload(os.system, f"touch {mark}"),
        "exec": Payload(exec, f"open({str(mark)!r}, 'w')"),
        "open": Payload(open, str(mark), "w"),
        "run": Payload(subprocess.run, ["touch", str(mark)]),
    }


WRITERS = {
    "plain": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "plain0": lambda value, path: path.write_bytes(pickle.dumps(value, 0)),
    "plain2": lambda value, path: path.write_bytes(pickle.dumps(value, 2)),
    "dill": lambda value, path: path.write_bytes(dill.dumps(value)),
    "zip": torch.save,
    "zip-dill": lambda value, path: torch.save(value, path, pickle_module=dill),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "legacy-dill": lambda value, path: torch.save(
        value, path, pickle_module=dill, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["system", "exec", "open", "run"])
def test_nothing_in_a_foreign_file_runs(tmp_path, writer, kind):
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    payload = payloads(mark)[kind]
    WRITERS[writer]({"w": torch.arange(3.0), "evil": payload}, path)
    tensors = checkpoints.read_foreign(path)
    assert {n: t.tolist() for n, t in tensors.items()} == {"w": [0, 1, 2]}
    WRITERS[writer](payload, path)
    with pytest.raises(FuncrobustError, match="holds no tensors"):
        checkpoints.read_foreign(path)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["system", "exec", "open", "run"])
def test_the_payloads_are_real(tmp_path, kind):
    """An ordinary reader does run them, so the test above would notice."""
    torch.save(payloads(tmp_path / "mark")[kind], tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("foreign", [False, True])
def test_tensors_of_every_kind_come_back_exactly(tmp_path, writer, foreign):
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "base": base,
        "view": base[1, 1:],
        "transposed": base.transpose(0, 2),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(3).double(),
        "int": torch.tensor([1, -2]),
        "byte": torch.tensor([1, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(5),
        "empty": torch.empty(0, 2),
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "t.pt"
    content = {"state_dict": tensors, "args": types.SimpleNamespace(lr=1)} if foreign else tensors
    WRITERS[writer](content, path)
    assert same(checkpoints.read_foreign(path), tensors)


@pytest.mark.parametrize("writer", ["zip", "legacy", "plain"])
def test_our_reader_agrees_with_torchs(tmp_path, network, writer):
    path = tmp_path / "t.pt"
    WRITERS[writer](network.state_dict(), path)
    data = path.read_bytes()
    assert same((_read_zip if writer == "zip" else _read_stream)(data), network.state_dict())


def test_hostile_tensors_stay_inside_their_storage(tmp_path):
    """A stride that points outside would read other memory of this process."""
    from funcrobust.checkpoints.foreign import _tensor

    flat = torch.arange(6.0)
    assert _tensor(flat, 1, (2, 2), (3, 1)).tolist() == [[1, 2], [4, 5]]
    for offset, size, stride in [
        (5, (2,), (1,)),
        (0, (2,), (6,)),
        (-1, (1,), (1,)),
        (0, (2, 2), (2**62, 2**62)),
        (0, (1_000_000,), (0,)),
        (3, (2,), (-1,)),
    ]:
        with pytest.raises(pickle.UnpicklingError):
            _tensor(flat, offset, size, stride)


def test_a_pickle_cannot_change_the_reader():
    """Setting state on a builder must not reach the functions that later files are read with."""
    poison = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x03\x00\x00\x00bad}ub."
    _read_stream(poison)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "bad")
    again = pickle.dumps({"w": torch.ones(2)})
    assert _read_stream(again)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("writer", ["zip", "legacy", "plain", "zip-dill"])
@pytest.mark.parametrize("part", [0, 1, 10, 0.3, 0.7, -5])
def test_truncated_foreign_files(tmp_path, writer, part):
    path = tmp_path / "t.pt"
    WRITERS[writer]({"w": torch.randn(50), "other": Payload(os.getcwd)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part) if isinstance(part, float) else part])
    with pytest.raises(FuncrobustError, match=r"t\.pt is damaged") as caught:
        checkpoints.read_foreign(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", ["zip", "legacy", "plain", "legacy-dill"])
def test_damaged_foreign_files_fail_in_one_way(tmp_path, writer):
    """Whatever bytes are flipped: tensors, or the one error."""
    path = tmp_path / "t.pt"
    WRITERS[writer]({"w": torch.randn(5), "other": types.SimpleNamespace(a=1)}, path)
    data = path.read_bytes()
    for seed in range(40):
        chance = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 5])):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(FuncrobustError):
            checkpoints.read_foreign(path)


def test_announced_sizes_are_not_believed():
    """A few bytes that claim gigabytes: a memo index, a bytearray."""
    huge = (2**40).to_bytes(8, "little")
    tracemalloc.start()
    try:
        for data in (b"\x80\x02}r\xff\xff\xff\xff.", b"\x80\x05\x96" + huge + b"."):
            with contextlib.suppress(KeyError):
                _read_stream(data)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_mapping_that_holds_itself(tmp_path):
    cyclic: dict[str, object] = {}
    cyclic["model"] = cyclic
    (tmp_path / "c.pt").write_bytes(pickle.dumps(cyclic))
    with pytest.raises(FuncrobustError, match="damaged"):
        checkpoints.read_foreign(tmp_path / "c.pt")


def test_a_missing_foreign_file(tmp_path):
    with pytest.raises(FuncrobustError, match="No such file"):
        checkpoints.read_foreign(tmp_path / "absent.pt")


def attacker_model(network, wrapper="module."):
    """The state dict of robustness's AttackerModel around a network, as its trainer saves it."""
    normalizer = {
        "new_mean": torch.tensor([0.4, 0.5, 0.6])[:, None, None],
        "new_std": torch.tensor([0.2, 0.3, 0.4])[:, None, None],
    }
    weights = network.state_dict()
    names = collections.OrderedDict()
    names.update({f"{wrapper}normalizer.{n}": t for n, t in normalizer.items()})
    names.update({f"{wrapper}model.{n}": t for n, t in weights.items()})
    names.update({f"{wrapper}attacker.normalize.{n}": t for n, t in normalizer.items()})
    names.update({f"{wrapper}attacker.model.{n}": t for n, t in weights.items()})
    return names


@pytest.mark.parametrize("writer", ["legacy-dill", "zip-dill", "dill"])
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod."])
def test_a_madry_lab_file_is_imported(tmp_path, writer, wrapper):
    source = models.build("preact-tiny", num_classes=7, seed=5).eval()
    local = 0.1

    class Schedule:
        def __init__(self):
            self.function = lambda epoch: local * epoch

        def __len__(self):
            return 3

    content = {
        "model": attacker_model(source.net, wrapper),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "schedule": Schedule(),
        "lambda": lambda epoch: epoch // 50,
        "kinds": [Schedule, types.SimpleNamespace(a={1, 2}), collections.Counter("abc")],
        "epoch": 150,
    }
    path = tmp_path / "cifar_l2_0_5.pt"
    WRITERS[writer](content, path)
    tensors = checkpoints.read_foreign(path)
    assert tensors["normalizer.new_mean"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    bare = {n: t for n, t in tensors.items() if not n.startswith("normalizer.")}
    assert same(bare, source.net.state_dict())

    with pytest.raises(FuncrobustError, match="pass model="):
        checkpoints.load(path)
    loaded, card = checkpoints.load(path, model="preact-tiny")
    assert card.num_classes == 7
    assert card.mean == pytest.approx((0.4, 0.5, 0.6))
    assert "from the file" in card.notes
    x = torch.rand(2, 3, 32, 32)
    mean, std = (tensors[f"normalizer.new_{k}"][None] for k in ("mean", "std"))
    torch.testing.assert_close(loaded(x), source.net((x - mean) / std))
    checkpoints.save(tmp_path / "mine", loaded.state_dict(), card)
    assert same(checkpoints.load(tmp_path / "mine")[0].state_dict(), loaded.state_dict())


def test_robustness_itself_writes_the_names_we_strip():
    """An oracle for `attacker_model`: the library's own class around its own network."""
    library = models.import_robustness("attacker")
    dataset = types.SimpleNamespace(mean=torch.full((3,), 0.4), std=torch.full((3,), 0.2))
    network = models.build("preact-tiny")
    theirs = library.AttackerModel(network.net, dataset).state_dict()
    ours = attacker_model(network.net, wrapper="")
    assert list(theirs) == list(ours)
    assert [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]


def test_a_network_that_happens_to_be_called_model_keeps_its_names(tmp_path):
    torch.save({"model.0.weight": torch.ones(1)}, tmp_path / "t.pt")
    assert list(checkpoints.read_foreign(tmp_path / "t.pt")) == ["model.0.weight"]


def test_a_foreign_file_of_another_network(tmp_path, network):
    torch.save(network.net.state_dict(), tmp_path / "t.pt")
    with pytest.raises(FuncrobustError, match="does not hold the weights of a preact-resnet18"):
        checkpoints.load(tmp_path / "t.pt", model="preact-resnet18")
    loaded, card = checkpoints.load(tmp_path / "t.pt", model="preact-tiny")
    assert "assumed" in card.notes
    assert same(loaded.state_dict(), network.state_dict())


def test_our_own_state_dict_saved_by_torch(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "t.pt")
    loaded, _ = checkpoints.load(tmp_path / "t.pt", model="preact-tiny")
    assert same(loaded.state_dict(), network.state_dict())


def test_a_file_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "args": Payload(os.getcwd)}, tmp_path / "t.pt")
    with pytest.raises(FuncrobustError, match="keys 'epoch', 'args'"):
        checkpoints.read_foreign(tmp_path / "t.pt")
