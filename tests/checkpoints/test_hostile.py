"""Files that someone made to break what reads them: one line, and neither memory nor code."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import pytest
import torch
from cards import CARD
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.checkpoints.format import CARD as KEY
from funcrobust.checkpoints.state import _KEY
from funcrobust.core.errors import FuncrobustError
from funcrobust.running.dataset import dataset_for


def refused(call, *words, match=""):
    """One line, not a long one, whatever the file held."""
    with pytest.raises(FuncrobustError, match=match) as caught:
        call(*words)
    said = str(caught.value)
    assert "\n" not in said or "\n" in match
    assert len(said) < 1500
    return said


# --- safetensors and their cards ----------------------------------------------------------------


def rewritten(path, change):
    """Write the file again with another header; ``change(header)`` returns the new one's bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    new = change(header)
    raw = new if isinstance(new, bytes) else json.dumps(new).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
    return path


def with_card(path, **changes):
    def change(header):
        card = json.loads(header["__metadata__"][KEY]) | changes
        header["__metadata__"][KEY] = json.dumps(card)
        return header

    return rewritten(path, change)


def with_card_text(path, text):
    def change(header):
        header["__metadata__"][KEY] = text
        return header

    return rewritten(path, change)


DEEP = "[" * 50_000 + "]" * 50_000

CARDS = {
    "classes": {"num_classes": 10**12}, "classes as float": {"num_classes": 10.0},
    "classes none": {"num_classes": None}, "classes huge": {"num_classes": 10**400},
    "classes negative": {"num_classes": -1}, "classes true": {"num_classes": True},
    "classes beyond int64": {"num_classes": 2**63}, "classes at int64": {"num_classes": 2**63 - 1},
    "epsilon text": {"epsilon": "8/255"}, "epsilon nan": {"epsilon": float("nan")},
    "epsilon negative": {"epsilon": -1.0}, "epsilon list": {"epsilon": [1]},
    "epsilon infinite": {"epsilon": float("inf")}, "epsilon huge": {"epsilon": 10**400},
    "mean huge": {"mean": [10**400] * 3}, "mean infinite": {"mean": [float("-inf")] * 3},
    "mean text": {"mean": "abc"}, "mean short": {"mean": [0.5]}, "mean true": {"mean": [True] * 3},
    "mean none": {"mean": None}, "std zero": {"std": [0, 0, 0]}, "std tiny": {"std": [1e-60] * 3},
    "std negative": {"std": [-1.0] * 3}, "std dict": {"std": {"0": 1.0}},
    "seed": {"seed": 2**70}, "seed negative": {"seed": -1}, "seed float": {"seed": 0.5},
    "class names": {"class_names": ["a"] * 11}, "class names text": {"class_names": "abcdefghij"},
    "class names numbers": {"class_names": list(range(10))},
    "shape": {"image_shape": [3, 10**9, 10**9]}, "channels": {"image_shape": [10**9, 1, 1]},
    "shape text": {"image_shape": "333"}, "shape zero": {"image_shape": [3, 0, 32]},
    "shape short": {"image_shape": [3, 32]}, "shape none": {"image_shape": None},
    "model": {"model": 3}, "model none": {"model": ""}, "model unknown": {"model": "x" * 10**6},
    "model list": {"model": ["preact-tiny"]}, "dataset": {"dataset": 1},
    "constraint": {"constraint": "l" * 10**5}, "another's name": {"constraint": "inf"},
    "constraint list": {"constraint": ["linf"]},
    "metrics": {"metrics": [1]}, "metrics text": {"metrics": {"clean": "x"}},
    "versions": {"versions": {"torch": 2}}, "notes": {"notes": {"a": [1]}},
    "restoring": {"restoring_step": "0.1"}, "restoring zero": {"restoring_step": 0},
    "half a character": {"notes": "\ud800"}, "created": {"created": 5},
}  # fmt: skip
"""Each alone makes a card that is none, or that is not these tensors'."""


@pytest.mark.parametrize("case", CARDS)
@pytest.mark.parametrize("verify", [True, False])
def test_a_card_that_is_none(saved, case, verify):
    with_card(saved, **CARDS[case])
    if case == "shape" and not verify:  # a network takes any size; the images are what they are
        return
    refused(lambda: checkpoints.load(saved, verify=verify), match=re.escape(str(saved)))


@pytest.mark.parametrize("text", ["", "null", "3", "[]", "{", DEEP, '{"model":' * 50_000,
                                  '{"model": "a", "model": "b"}', "NaN", "9" * 5000])  # fmt: skip
def test_a_card_that_is_no_object(saved, text):
    refused(checkpoints.load, with_card_text(saved, text), match="card")


@pytest.mark.parametrize(
    "header",
    [
        lambda h: h | {"__metadata__": None}, lambda h: h | {"__metadata__": []},
        lambda h: h | {"__metadata__": {KEY: None}}, lambda h: h | {"__metadata__": {KEY: 3}},
        lambda h: h | {"__metadata__": {KEY: {}}}, lambda _: b"null", lambda _: b"[]",
        lambda _: DEEP.encode(), lambda _: b'{"a":' * 50_000,
        lambda h: h | {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}},
        lambda h: h | {"x": {"dtype": "F32", "shape": [0] * 10**5, "data_offsets": [0, 0]}},
        lambda h: h | {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}},
        lambda h: h | {"x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}},
        lambda h: h | {"x": {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}},
        lambda h: h | {"x\x1b[2J\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
    ],
)  # fmt: skip
def test_a_header_that_is_none(saved, header):
    refused(checkpoints.load, rewritten(saved, header), match=r"net\.safetensors")


def test_twice_the_same_name(saved):
    """Two readers may take one each: neither is believed."""

    def twice(header):
        name = next(n for n in header if n != "__metadata__")
        text = json.dumps(header)
        return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}".encode()

    refused(checkpoints.load, rewritten(saved, twice), match="safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_precision_that_nothing_is_computed_in(tmp_path, dtype):
    path = checkpoints.save_state(tmp_path, {"w": torch.zeros(3).to(dtype)}, {})
    refused(checkpoints.load_state, path, match="holds w as torch.float8")


def test_complex_weights_and_numbers_beyond_float32(tmp_path, network):
    state = network.state_dict()
    name = next(n for n in state if n.endswith("weight"))
    huge = torch.full(state[name].shape, 1e300, dtype=torch.float64)
    for other in (state[name].to(torch.complex64), huge):
        path = checkpoints.save(tmp_path / "n", {**state, name: other}, CARD)
        refused(checkpoints.load, path, match="1 complex|NaN or infinite|overflow")


def test_no_network_is_made_before_its_sizes_are_the_files(saved, monkeypatch):
    """A card that claims 10^12 classes allocates nothing."""
    made = []
    build = models.build

    def watched(*words, **more):
        made.append(torch.get_default_device().type)
        return build(*words, **more)

    monkeypatch.setattr(models, "build", watched)
    refused(checkpoints.load, with_card(saved, num_classes=10**12, class_names=[]), match="weights")
    assert made == ["meta"]


def test_a_factory_is_told_no_number_that_no_tensor_has(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(
        "def make(num_classes):\n    raise SystemError('it was called')\n"
    )
    monkeypatch.chdir(tmp_path)
    state = nn.Linear(2, 3).state_dict()
    card = {"model": "told:make", "image_shape": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}
    for classes, said in ((10**9, "no tensor has such a size"), (3, "it was called")):
        card_ = checkpoints.Card(**card, num_classes=classes, dataset="none")
        path = checkpoints.save(tmp_path / "n", state, card_)
        refused(lambda path=path: checkpoints.load(path, model="told:make"), match=said)


def test_a_card_names_no_file_to_read(saved):
    _, card = checkpoints.load(with_card(saved, dataset="/etc/passwd"), verify=False)
    refused(dataset_for, None, card, match="/etc/passwd")


# --- states -------------------------------------------------------------------------------------


STATES = ["null", "3", "[]", DEEP, '{"step": 1, "step": 2}', "NaN", "1" * 5000]


@pytest.mark.parametrize("text", STATES)
def test_a_state_that_is_none(tmp_path, text):
    path = checkpoints.save_state(tmp_path, {"step": torch.tensor(3)}, {"step": 3})

    def change(header):
        header["__metadata__"][_KEY] = text
        return header

    refused(checkpoints.load_state, rewritten(path, change), match="state")


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"w": torch.zeros(2, 3)}, {"strides": {"w": [2**40, 1]}}),
        ({"w": torch.zeros(2, 3)}, {"strides": {"w": [-3, 1]}}),
        ({"w": torch.zeros(2, 3)}, {"strides": {"w": [0, 0]}}),
        ({"w": torch.zeros(2, 3)}, {"strides": {"w": [3]}}),
        ({"w": torch.zeros(2, 3)}, {"strides": {"w": "31"}}),
        ({"w": torch.zeros(2, 3)}, {"strides": {}}), ({"w": torch.zeros(2, 3)}, {"strides": 3}),
        ({"w": torch.zeros(2, 3)}, {"strides": None}),
        ({"step": torch.tensor(-7)}, {"step": -7}), ({"step": torch.zeros(2)}, {"step": 1}),
        ({"step": torch.tensor(1.5)}, {"step": 1}), ({"step": torch.tensor(3)}, {"step": "3"}),
    ],
)  # fmt: skip
def test_a_state_that_claims_more_than_it_holds(tmp_path, tensors, meta):
    path = checkpoints.save_state(tmp_path, tensors, meta)
    refused(checkpoints.load_state, path, match=r"state\.safetensors")


def test_layouts_that_are_there(tmp_path):
    tensors = {"w": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
               "one": torch.zeros(3, 1, 1, 1), "none": torch.zeros(0, 2), "step": torch.tensor(4),
               "t": torch.zeros(4, 7).t()}  # fmt: skip
    meta = {"step": 4, "strides": {n: list(t.stride()) for n, t in tensors.items()}}
    path = checkpoints.save_state(tmp_path, tensors, meta)
    assert checkpoints.load_state(path)[1] == meta


# --- other people's files -----------------------------------------------------------------------


def written(path, value, **more):
    torch.save(value, path, **more)
    return path


OTHERS = {
    "sparse": lambda: {"w": torch.eye(3).to_sparse()},
    "sparse rows": lambda: {"w": torch.eye(3).to_sparse_csr()},
    "meta": lambda: {"w": torch.empty(2**40, device="meta")},
    "quantised": lambda: {"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "nested": lambda: {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "a terabyte by stride 0": lambda: {"w": torch.zeros(1).expand(2**38)},
    "a terabyte by names": lambda: dict.fromkeys(map(str, range(2**10)), torch.zeros(2**12)),
    "keys": lambda: {3: torch.ones(1), None: torch.ones(1), (1, (2,)): torch.ones(1)},
    "huge keys": lambda: {10**5000: 1},
    "nothing": lambda: {},
    "none": lambda: None,
    "axes": lambda: {"w": torch.zeros([1] * 60 + [0])},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_no_network_has(tmp_path, case, zipped):
    path = tmp_path / "t.pt"
    try:
        torch.save(OTHERS[case](), path, _use_new_zipfile_serialization=zipped)
    except Exception as error:
        pytest.skip(f"torch writes none: {error}")
    refused(lambda: checkpoints.load(path, model="preact-tiny"), match=r"t\.pt")


def normaliser(mean, std):
    state = {f"module.model.{n}": t for n, t in models.build("resnet20").net.state_dict().items()}
    return state | {"module.normalizer.new_mean": mean, "module.normalizer.new_std": std}


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.zeros(3), torch.zeros(3)), (torch.zeros(3), torch.full((3,), 1e-30)),
        (torch.zeros(3, dtype=torch.complex64), torch.ones(3)),
        (torch.zeros(3), torch.ones(3, dtype=torch.complex64)),
        (torch.zeros(3), torch.full((3,), float("nan"))), (torch.zeros(4), torch.ones(4)),
        (torch.zeros(3), torch.ones(1)), (torch.zeros(0), torch.ones(0)),
        (torch.full((3,), 1e300, dtype=torch.float64), torch.ones(3)),
        (torch.zeros(3), -torch.ones(3)),
    ],
)  # fmt: skip
def test_normalisers_that_are_none(tmp_path, mean, std):
    path = written(tmp_path / "t.pt", normaliser(mean, std))
    refused(lambda: checkpoints.load(path, model="resnet20"))


def test_a_normaliser_that_is_one(tmp_path):
    path = written(tmp_path / "t.pt", normaliser(torch.full((3, 1, 1), 0.4), torch.full((3,), 0.2)))
    _, card = checkpoints.load(path, model="resnet20")
    assert (card.mean, card.std) == (pytest.approx((0.4,) * 3), pytest.approx((0.2,) * 3))


def test_sizes_of_another_network(tmp_path):
    """The first convolution and the last matrix say the sizes, and may lie."""
    state = models.build("resnet20").net.state_dict()
    last = [n for n in state if state[n].ndim == 2][-1]
    for lie in (torch.zeros(2**40, 0), torch.zeros(0, 64), torch.zeros(2**62, 0)):
        path = written(tmp_path / "t.pt", {**state, last: lie})
        refused(lambda path=path: checkpoints.load(path, model="resnet20"))


def test_a_zip_that_is_a_bomb(tmp_path):
    """Compressed members, and members that lie over each other."""
    path = written(tmp_path / "t.pt", {"w": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 10**5
    refused(checkpoints.read_foreign, path, match="compressed|more bytes")
    path = written(tmp_path / "t.pt", {"w": torch.zeros(1000)})
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        archive.filelist += [infos[-1]] * 1000
        end = archive.start_dir
    overlapping = io.BytesIO(data[:end])
    with zipfile.ZipFile(overlapping, "a") as archive:  # the same data, a thousand times over
        archive.filelist += [*infos, *([next(i for i in infos if "/data/0" in i.filename)] * 1000)]
        archive._didModify = True
        archive.start_dir = end
    path.write_bytes(overlapping.getvalue())
    refused(checkpoints.read_foreign, path)


LAUGHS = b"\x80\x02" + b"".join([
    b"cx\ny\n", b"q\x00",  # something
    b"h\x00h\x00\x86q\x01",  # (a, a)
    *(bytes([*b"h", i, *b"h", i, 0x86, *b"q", i + 1]) for i in range(1, 200)),
])  # fmt: skip
ENCODE = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**5) + b"x" * 10**5 + b"q\x01"

PICKLES = {
    # A tuple whose hash takes 2^200 steps.
    "hash": b"\x80\x02}" + LAUGHS[2:] + b"N\x73.",
    "hash in a dict": b"\x80\x02(" + LAUGHS[2:] + b"Nd.",
    "hash in a set": b"\x80\x04\x8f(" + LAUGHS[2:] + b"\x90.",
    "hash in a frozen set": b"\x80\x04(" + LAUGHS[2:] + b"\x91.",
    "hash in an ordered dict": b"\x80\x02ccollections\nOrderedDict\n](" + LAUGHS[2:]
    + b"N\x86e\x85R.",
    # A text of 100 kB, copied 10 000 times.
    "copies": ENCODE + b"(" + b"h\x00h\x01\x85R" * 10_000 + b"l.",
    "a memo's index": b"\x80\x02}r\xff\xff\xff\xff.",
    "a byte array": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "deep": b"(" * 20_000 + b"t" * 20_000 + b".",
    "deep lists": b"](" * 20_000 + b"e" * 20_000 + b".",
    "names": b"\x80\x02(" + b"".join(b"ca\nb%d\n" % i for i in range(3000)) + b"t.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "a file in a file in a file": pickle.dumps(3),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_makes_much_of_itself(tmp_path, case):
    """No time without end (the suite's limit would find it), and no more memory than its length."""
    path = tmp_path / "t.pt"
    path.write_bytes(PICKLES[case])
    tracemalloc.start()
    try:
        refused(checkpoints.read_foreign, path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders there")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.pt")
    refused(checkpoints.read_foreign, tmp_path / "t.pt", match="no plain file")
    os.mkfifo(tmp_path / "state.safetensors")
    refused(checkpoints.load_state, tmp_path, match="no plain file")
    refused(checkpoints.load, tmp_path / "t.pt", match=r"no checkpoint")
