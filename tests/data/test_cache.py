"""The cache: never half-written, found damaged when it is, filled once by many."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from published_sets import assert_holds, remote, use

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import sources
from funcrobust.data.cache import digests, exclusive, read_cache, write_cache


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
    use(monkeypatch, "cifar10", digests=known, remotes=(remote("remote", tiny, calls),))
    data.load("cifar10", cache=tmp_path)
    damage(tmp_path / "cifar10.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert_holds(data.load("cifar10", cache=tmp_path), tiny)
    assert calls == ["remote", "remote"]
    assert data.load("cifar10", cache=tmp_path).source == "cache"


def test_a_failed_write_leaves_the_old_cache(tiny, tmp_path, monkeypatch):
    path = tmp_path / "cifar10.safetensors"
    write_cache(path, tiny, "first")
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_cache(path, tiny._replace(x_train=255 - tiny.x_train), "second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_leftovers_of_others_disturb_nothing_and_old_ones_go(tiny, tmp_path):
    fresh, old = tmp_path / ".partial-fresh", tmp_path / ".partial-old"
    half_written = tmp_path / ".cifar10.safetensors.0123456789ab.tmp"
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "cifar10.safetensors").write_bytes(b"half")
    half_written.write_bytes(b"half")
    for leftover in (old, half_written):
        os.utime(leftover, (time.time() - 48 * 3600,) * 2)
    with exclusive(tmp_path, "cifar10"):
        write_cache(tmp_path / "cifar10.safetensors", tiny, "x")
    assert read_cache(tmp_path / "cifar10.safetensors", digests(tiny)).class_names[0] == "airplane"
    assert fresh.exists()
    assert not old.exists()
    assert not half_written.exists()


def test_many_at_once_fetch_once(tiny, tmp_path, monkeypatch):
    calls = []

    def slow(_folder, _progress):
        calls.append("fetch")
        time.sleep(0.2)
        return tiny

    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=(sources.Remote("slow", slow),))
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
    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=(remote("remote", tiny, calls),))
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
