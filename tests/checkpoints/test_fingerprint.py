"""A checkpoint proves itself: every damage is found, and nothing but damage."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from cards import CARD, same
from torch import nn

from funcrobust import checkpoints, models
from funcrobust.checkpoints.fingerprint import (
    TOLERANCE,
    WIDTH,
    count,
    difference,
    digest,
    fingerprint,
    images,
)
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import functionalize
from funcrobust.report.runs import RunFolder
from funcrobust.running.classifier import save_checkpoint

# What the digest says, and what the fingerprint says where a card has no digest.
DAMAGED = r"is damaged or was changed: its tensors do not have the SHA-256"
ANOTHER = r"does not make the [\w:-]+ it was saved as: at fixed images its logits are off by "


@pytest.fixture
def shipped(tmp_path):
    """A trained network's checkpoint."""
    found = checkpoints.shipped()["cifar10-linf-tiny"]
    path = tmp_path / "net.safetensors"
    path.write_bytes(found.read_bytes())
    return path


def card_inside(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["funcrobust.card"])


def rewrite(path, tensors=None, **changes):
    """Change a file without the library: its tensors, or its card's entries (None drops one)."""
    card = {**card_inside(path), **changes}
    text = json.dumps({name: value for name, value in card.items() if value is not None})
    tensors = safetensors.torch.load(path.read_bytes()) if tensors is None else tensors
    safetensors.torch.save_file(tensors, path, {"funcrobust.card": text})


def flip(tensor, bit):
    """Flip a bit of the entry that is largest."""
    tensor.view(-1).view(torch.int32)[tensor.abs().argmax()] ^= 1 << bit


def exchange(tensors, a, b):
    tensors[a], tensors[b] = tensors[b].clone(), tensors[a].clone()


def transpose(tensors, name, *axes):
    tensors[name] = tensors[name].transpose(*axes).contiguous()


def round_to(tensors, dtype):
    for tensor in tensors.values():
        tensor.copy_(tensor.to(dtype) if tensor.is_floating_point() else tensor)


CONV = "net.layer1.0.conv2.weight"
DAMAGES = {
    "a convolution zeroed": lambda t: t[CONV].zero_(),
    "a bias zeroed": lambda t: t["net.linear.bias"].zero_(),
    "running means zeroed": lambda t: t["net.layer2.0.bn1.running_mean"].zero_(),
    "a lowest bit of an exponent": lambda t: flip(t["net.conv1.weight"], 23),
    "a highest bit of an exponent": lambda t: flip(t["net.linear.weight"], 30),
    "mean and std exchanged": lambda t: exchange(t, "mean", "std"),
    "a mean off by a tenth": lambda t: t["mean"].mul_(1.1),
    "a std off by a tenth": lambda t: t["std"].mul_(1.1),
    "the channels' means in another order": lambda t: t["mean"].copy_(t["mean"].flip(1)),
    "a convolution transposed": lambda t: transpose(t, CONV, 0, 1),
    "a kernel transposed": lambda t: transpose(t, CONV, 2, 3),
    "two tensors exchanged": lambda t: exchange(
        t, "net.layer1.0.bn1.bias", "net.layer2.0.bn1.bias"
    ),
    "weights rounded to float16": lambda t: round_to(t, torch.float16),
}
UNSEEN = {"a lowest bit of a mantissa": lambda t: flip(t["net.conv1.weight"], 0)}


@pytest.mark.parametrize("damage", DAMAGES | UNSEEN)
def test_the_digest_finds_every_damage_of_the_tensors(shipped, damage):
    tensors = safetensors.torch.load(shipped.read_bytes())
    (DAMAGES | UNSEEN)[damage](tensors)
    rewrite(shipped, tensors)
    for reader in (checkpoints.load, checkpoints.read):
        with pytest.raises(FuncrobustError, match=DAMAGED) as caught:
            reader(shipped)
        assert "\n" not in str(caught.value)
        reader(shipped, verify=False)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_fingerprint_alone_finds_what_moves_the_logits(shipped, damage):
    tensors = safetensors.torch.load(shipped.read_bytes())
    DAMAGES[damage](tensors)
    rewrite(shipped, tensors, sha256=None)
    with pytest.raises(FuncrobustError, match=ANOTHER + ".*damaged tensors, or another arch"):
        checkpoints.load(shipped)


def test_the_fingerprint_does_not_reach_the_last_bits(shipped):
    tensors = safetensors.torch.load(shipped.read_bytes())
    UNSEEN["a lowest bit of a mantissa"](tensors)
    rewrite(shipped, tensors, sha256=None)
    checkpoints.load(shipped)


# --- another network around the same tensors ----------------------------------------------------


def test_silu_for_relu(shipped):
    """The twin has tensors of the same names and shapes: nothing else could tell."""
    rewrite(shipped, model="preact-tiny-silu")
    with pytest.raises(FuncrobustError, match=ANOTHER) as caught:
        checkpoints.load(shipped)
    assert "damaged" not in str(caught.value), "the digest has shown that they are not"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda net, x: net.net(x),
        lambda net, x: net.net((x - net.mean) * net.std),
        lambda net, x: net.net(x / net.std - net.mean),
        lambda net, x: net.net((255 * x - net.mean) / net.std),
        lambda net, x: net.net((x.flip(1) - net.mean) / net.std),
    ],
    ids=["none", "multiplied", "other order", "bytes", "BGR"],
)
def test_another_normalisation(shipped, monkeypatch, otherwise):
    monkeypatch.setattr(models.Normalized, "forward", otherwise)
    with pytest.raises(FuncrobustError, match=ANOTHER):
        checkpoints.load(shipped)


FACTORY = """
from torch import nn
act, eps, padding = nn.SiLU, 1e-5, "zeros"
def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode=padding), nn.BatchNorm2d(8, eps=eps), act(),
        nn.Flatten(), nn.Linear(512, 10),
    )
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Code of one's own, its card, and a network that has seen images."""
    (tmp_path / "own_print.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = importlib.import_module("own_print")
    card = dataclasses.replace(
        CARD, model="own_print:net", image_shape=(1, 8, 8), mean=(0.3,), std=(0.4,)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.Normalized(code.net(), card.mean, card.std)
        for _ in range(50):
            network(torch.rand(64, 1, 8, 8) / 50)  # a small variance, so that eps counts
    yield code, card, network.eval()
    del sys.modules["own_print"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("act", nn.ReLU), ("act", nn.GELU), ("eps", 1e-3), ("padding", "circular")],
    ids=["ReLU for SiLU", "GELU for SiLU", "eps of batch norm", "padding"],
)
def test_a_factory_whose_code_has_changed(factory, monkeypatch, name, value):
    code, card, network = factory
    path = checkpoints.save("own", network.state_dict(), card, network=network)
    assert checkpoints.load(path, model=card.model)[1].fingerprint
    monkeypatch.setattr(code, name, value)
    with pytest.raises(FuncrobustError, match=ANOTHER + ".*changed code"):
        checkpoints.load(path, model=card.model)


@pytest.mark.parametrize("model", [None, "own_print:other", "preact-tiny"])
def test_the_way_out_of_a_refusal_is_no_other_refusal(factory, model):
    _, card, network = factory
    path = checkpoints.save("own", network.state_dict(), card, network=network)
    with pytest.raises(FuncrobustError) as refused:
        checkpoints.load(path, model=model)
    assert "--model own_print:net" in str(refused.value)
    assert "leave model= out" not in str(refused.value)
    assert (model is None) or repr(model) in str(refused.value)


def test_tensors_that_are_not_the_networks_are_not_saved(factory, tmp_path):
    """They would be found not to fit when the file is read, and then it is too late."""
    _, card, network = factory
    half = {name: t for name, t in network.state_dict().items() if "running" not in name}
    assert half.keys() < network.state_dict().keys()
    with pytest.raises(FuncrobustError, match=r"missing \(.*running_mean"):
        checkpoints.save(tmp_path / "half", half, card, network=network)
    assert not list(tmp_path.glob("half*"))


def test_weights_without_what_normalises(factory, tmp_path):
    """A factory's network is wrapped unless it says that it normalises: the file's is not."""
    _, card, network = factory
    inner = {n.removeprefix("net."): t for n, t in network.state_dict().items()}
    inner = {name: t for name, t in inner.items() if name not in ("mean", "std")}
    path = checkpoints.save(tmp_path / "inner", inner, card)
    with pytest.raises(FuncrobustError, match=r"attribute normalized = True; else save"):
        checkpoints.load(path, model=card.model)


def test_a_factory_that_fails_on_its_images(factory):
    _, card, network = factory
    path = checkpoints.save("own", network.state_dict(), card, network=network)
    rewrite(path, image_shape=[1, 9, 9])
    with pytest.raises(FuncrobustError, match=r"fails on the card's fixed images \(RuntimeError"):
        checkpoints.load(path, model=card.model)


def test_a_card_does_not_call_a_factory_to_be_saved(factory, monkeypatch):
    code, card, network = factory
    monkeypatch.delattr(code, "net")
    path = checkpoints.save("own", network.state_dict(), card)
    assert checkpoints.read(path)[1].fingerprint == ()


def test_what_was_changed_knowingly_is_saved_anew(shipped):
    rewrite(shipped, model="preact-tiny-silu")
    network, card = checkpoints.load(shipped, verify=False)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    checkpoints.save(shipped, network.state_dict(), card)
    again, new = checkpoints.load(shipped)
    assert same(again.state_dict(), network.state_dict())
    assert new.fingerprint != card.fingerprint


# --- nothing but damage -------------------------------------------------------------------------


def test_the_shipped_ones_prove_themselves():
    for name, path in checkpoints.shipped().items():
        network, card = checkpoints.load(name)
        assert card.sha256 == digest(safetensors.torch.load(path.read_bytes()))
        assert [len(row) for row in card.fingerprint] == [10] * 4
        # Against float64, by itself: a hundred times nearer than what is refused.
        x = images(card.image_shape).double()
        exact = network.double()(x).tolist()
        assert difference(tuple(map(tuple, exact)), card.fingerprint) < TOLERANCE / 100
        beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert beside == card_inside(path), f"{name}: the card inside is not the one beside"


def test_threads_layouts_and_precisions_of_the_caller(shipped):
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            checkpoints.load(shipped)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        checkpoints.load(shipped)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        network, card = checkpoints.load(shipped)
        assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled
    network = network.to(memory_format=torch.channels_last)
    found = fingerprint(network, card.image_shape)
    assert difference(found, card.fingerprint) < TOLERANCE / 100


def test_plain_instructions():
    """Another process, where no vectors are used: it loads all that were made with them."""
    code = (
        "import torch\nfrom funcrobust import checkpoints\n"
        "assert torch.backends.cpu.get_cpu_capability() == 'DEFAULT'\n"
        "print(sum(bool(checkpoints.load(name)[1].fingerprint) for name in checkpoints.shipped()))"
    )
    changed = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=changed, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(len(checkpoints.shipped())), done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_fingerprint_of_what_is_stored(shipped, dtype):
    network, card = checkpoints.load(shipped)
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in network.state_dict().items()}
    path = checkpoints.save(shipped, half, card, network=network)
    loaded, new = checkpoints.load(path)
    assert new.sha256 == digest(half) != card.sha256
    assert TOLERANCE < difference(new.fingerprint, card.fingerprint) < 0.1
    assert fingerprint(loaded, card.image_shape) == new.fingerprint
    assert network.state_dict()["net.conv1.weight"].dtype == torch.float32, "the caller's own"


@pytest.mark.parametrize("gone", [("sha256",), ("fingerprint",), ("sha256", "fingerprint")])
def test_cards_from_before(shipped, gone):
    rewrite(shipped, **dict.fromkeys(gone))
    _, card = checkpoints.load(shipped)
    assert (card.sha256 == "") == ("sha256" in gone)
    assert (card.fingerprint == ()) == ("fingerprint" in gone)


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 8, 8), 10), ((3, 96, 64), 2), ((3, 32, 32), 1), ((3, 224, 224), 1000)],
)
def test_other_shapes_and_numbers_of_classes(tmp_path, shape, classes):
    network = models.build("preact-tiny", num_classes=classes, in_channels=shape[0])
    card = dataclasses.replace(
        CARD, num_classes=classes, class_names=(), image_shape=shape,
        mean=tuple(network.mean.flatten().tolist()), std=tuple(network.std.flatten().tolist()),
    )  # fmt: skip
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card)
    found = checkpoints.load(path)[1].fingerprint
    assert (len(found), len(found[0])) == (count(shape), min(classes, WIDTH))


# --- when there is none -------------------------------------------------------------------------


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) + torch.randn(())


class Failing(nn.Linear):
    def forward(self, x):
        raise KeyError("no")


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)), x


class Unbounded(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) / 0


@pytest.mark.parametrize("kind", [Random, Failing, Pair, Unbounded])
def test_networks_without_a_fingerprint_are_saved_all_the_same(tmp_path, kind):
    network = kind(64, 10)
    card = dataclasses.replace(CARD, image_shape=(1, 8, 8), mean=(0.0,), std=(1.0,))
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card, network=network)
    tensors, found = checkpoints.read(path)
    assert found.fingerprint == ()
    assert same(tensors, network.state_dict())


def test_another_cards_fingerprint_is_not_kept(shipped, network):
    _, card = checkpoints.load(shipped)
    assert checkpoints.read(checkpoints.save(shipped, {}, card))[1].fingerprint == ()
    checkpoints.save(shipped, network.state_dict(), card)
    assert checkpoints.load(shipped)[1].fingerprint not in ((), card.fingerprint)


# --- what a file may say ------------------------------------------------------------------------

ROWS = [[1.0] * 10] * 4


@pytest.mark.parametrize(
    "value",
    [
        [], [[]] * 4, ROWS[:3], [*ROWS, ROWS[0]], [1.0] * 4, 3, "1", {"a": 1}, True, [ROWS] * 4,
        [*ROWS[:3], [1.0] * 9], [[1.0] * 17] * 4, [[0.0] * 100_000] * 4, [[0.0]] * 100_000,
        *([*ROWS[:3], [*ROWS[0][:9], v]] for v in ("1", None, True, [1.0], math.nan, math.inf)),
        [*ROWS[:3], [*ROWS[0][:9], 10**400]],
    ],
    ids=lambda value: repr(value[-1:] if isinstance(value, list) else value)[-24:],
)  # fmt: skip
def test_fingerprints_that_are_none(shipped, value):
    rewrite(shipped, fingerprint=value)
    if value == []:
        assert checkpoints.load(shipped)[1].fingerprint == ()
        return
    with pytest.raises(
        FuncrobustError, match=r"card that is not one: .*fingerprint|not JSON"
    ) as said:
        checkpoints.load(shipped, verify=False)
    assert len(str(said.value)) < 400 + len(str(shipped))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("value", [3, True, [], "abc", "g" * 64, "0" * 65, "0" * 64 + "\n"])
def test_digests_that_are_none(shipped, value):
    rewrite(shipped, sha256=value)
    with pytest.raises(FuncrobustError, match=r"card that is not one: .*sha256"):
        checkpoints.load(shipped)


def test_a_files_words_do_not_fill_the_memory(shipped):
    rewrite(shipped, image_shape=[3, 10**6, 10**6])
    with pytest.raises(FuncrobustError, match="card that is not one: a card's fingerprint"):
        checkpoints.load(shipped)


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "n"), [((3, 32, 32), 4), ((1, 8, 8), 4), ((1, 1, 1), 4), ((3, 224, 224), 1)]
)
def test_the_images_by_their_formula(shape, n):
    x = images(shape)
    assert x.shape == (n, *shape)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1
    text = "funcrobust fingerprint " + "x".join(map(str, x.shape))
    noise = hashlib.shake_256(text.encode()).digest(x.numel())
    channels, height, width = shape
    for i, c, row, column in [(0, 0, 0, 0), (n - 1, channels - 1, height - 1, width // 2)]:
        place = ((i * channels + c) * height + row) * width + column
        angle = math.pi * i / n
        u, v = column / width, row / height
        way = u * math.cos(angle) + v * math.sin(angle)
        grating = math.sin(2 * math.pi * (i + 1) * way + c)
        expected = 0.5 + grating / 4 + (noise[place] / 127.5 - 1) / 4
        assert float(x[i, c, row, column]) == pytest.approx(expected, abs=1e-6)


def test_few_classes_are_the_logits_themselves(network):
    found = torch.tensor(fingerprint(network, (3, 32, 32)))
    with torch.no_grad():
        torch.testing.assert_close(found, network(images((3, 32, 32))), rtol=1e-4, atol=1e-5)


def test_of_many_classes_each_is_seen():
    """Any one zeroed, any two beside each other exchanged, among a thousand."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(network[1].weight)
    whole = fingerprint(network, (1, 8, 8))
    # Of the same size as logits, so that the tolerance means the same.
    with torch.no_grad():
        logits = network(images((1, 8, 8)))
    size = torch.tensor(whole).square().mean().sqrt()
    assert 0.5 < size / logits.square().mean().sqrt() < 2
    weight = network[1].weight
    for c in range(0, 999, 37):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[c] = 0
            assert difference(fingerprint(network, (1, 8, 8)), whole) > TOLERANCE
            weight[[c, c + 1]] = kept[[c + 1, c]]
            assert difference(fingerprint(network, (1, 8, 8)), whole) > TOLERANCE
            weight.copy_(kept)
    assert fingerprint(network, (1, 8, 8)) == whole


def test_the_digest_is_of_names_types_shapes_and_bits():
    x = torch.arange(6.0).view(2, 3)
    one = {"a": x, "b": torch.tensor(7), "c": torch.empty(0, 3), "d": torch.ones(2).bfloat16()}
    assert digest(one) == digest(dict(reversed(one.items())))
    assert digest(one) == digest({**one, "a": x.t().contiguous().t()})
    others = [
        {**one, "a": x.view(3, 2)},
        {**one, "a": x.double()},
        {**one, "a": x.view(torch.int32)},
        {**one, "b": torch.tensor(8)},
        {**one, "c": torch.empty(3, 0)},
        {n: t for n, t in one.items() if n != "c"},
        {("e" if n == "d" else n): t for n, t in one.items()},
    ]
    assert len({digest(one), *map(digest, others)}) == 8
    text = b"'a' torch.float32 (2, 3)\n" + x.numpy().tobytes()
    assert digest({"a": x}) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("found", "expected", "off"),
    [
        (((3.0, 4.0),), ((3.0, 4.0),), 0),
        (((3.0, 5.0),), ((3.0, 4.0),), 1 / math.sqrt(12.5)),
        (((0.0,),), ((0.0,),), 0),
        (((1e-9,),), ((0.0,),), math.inf),
        (((math.nan,),), ((1.0,),), math.inf),
        (((1.0, 2.0),), ((1.0,),), math.inf),
    ],
)
def test_how_far_off(found, expected, off):
    assert difference(found, expected) == pytest.approx(off)


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_saves_the_fingerprint_of_what_it_trained(factory, tmp_path):
    """Also of a factory's network, laid out otherwise; the card says what loading then finds."""
    _, card, network = factory
    model = functionalize(network).to(memory_format=torch.channels_last)
    run = RunFolder.create(tmp_path / "runs", "cure-train", {}, "run")
    params = {name: 1.5 * tensor for name, tensor in model.params.items()}
    save_checkpoint(run, model, params, model.buffers, card)
    loaded, found = checkpoints.load(run.path, model=card.model)
    assert found.fingerprint
    assert same(loaded.state_dict(), {**params, **model.buffers})
    other = dataclasses.replace(card, model="preact-tiny")
    save_checkpoint(run, model, params, model.buffers, other)
    with pytest.raises(FuncrobustError, match="does not hold the weights"):
        checkpoints.load(run.path)
