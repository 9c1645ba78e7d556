"""Other people's pickles: their tensors exactly, and nothing in them runs."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import subprocess
import tracemalloc
import types

import pytest
import torch
from cards import same
from pickles import WRITERS, Payload
from torch import nn

from funcrobust import checkpoints
from funcrobust.checkpoints.foreign import _read_stream, _read_zip
from funcrobust.core.errors import FuncrobustError


def payloads(mark):
    """Ways of having a file called ``mark`` made by whoever unpickles them."""
    return {
        "system": Payload(os.system, f"touch {mark}"),
        "exec": Payload(exec, f"open({str(mark)!r}, 'w')"),
        "open": Payload(open, str(mark), "w"),
        "run": Payload(subprocess.run, ["touch", str(mark)]),
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


def test_a_network_that_happens_to_be_called_model_keeps_its_names(tmp_path):
    torch.save({"model.0.weight": torch.ones(1)}, tmp_path / "t.pt")
    assert list(checkpoints.read_foreign(tmp_path / "t.pt")) == ["model.0.weight"]


def test_a_file_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "args": Payload(os.getcwd)}, tmp_path / "t.pt")
    with pytest.raises(FuncrobustError, match="keys 'epoch', 'args'"):
        checkpoints.read_foreign(tmp_path / "t.pt")
