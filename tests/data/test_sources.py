"""The order in which the sources of a published set are tried."""

import pytest
from published_sets import as_binary, as_folder, remote, use

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data.cache import digests


def test_sources_are_tried_in_order_and_the_result_is_cached(tiny, tmp_path, monkeypatch):
    calls = []
    official = remote("official", FuncrobustError("out of reach"), calls)
    package = remote("package", tiny, calls)
    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=(official, package))
    assert data.load("cifar10", cache=tmp_path).source == "package"
    assert calls == ["official", "package"]
    assert data.load("cifar10", cache=tmp_path).source == "cache"
    assert calls == ["official", "package"]


def test_folder_comes_before_the_remotes_and_after_the_cache(tiny, tmp_path, monkeypatch):
    calls = []
    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=(remote("remote", tiny, calls),))
    folder = as_folder(tmp_path / "a", as_binary(tiny))
    first = data.load("cifar10", folder=folder, cache=tmp_path / "c")
    second = data.load("cifar10", folder=folder, cache=tmp_path / "c")
    assert (first.source, second.source, calls) == (f"folder {folder}", "cache", [])


def test_unavailable_lists_every_source_its_reason_and_the_way_out(tmp_path, monkeypatch):
    remotes = (remote("one", FuncrobustError("no host")), remote("two", FuncrobustError("no npm")))
    use(monkeypatch, "cifar10", remotes=remotes)
    with pytest.raises(data.DataUnavailable) as caught:
        data.load("cifar10", cache=tmp_path)
    message = str(caught.value)
    for part in ("cache: nothing at", "one: no host", "two: no npm", "--dataset digits"):
        assert part in message


def test_remote_with_other_bits_is_refused(tiny, tmp_path, monkeypatch):
    wrong = tiny._replace(x_test=tiny.x_test[::-1])
    use(
        monkeypatch,
        "cifar10",
        digests=digests(tiny),
        remotes=(remote("bad", wrong), remote("good", tiny)),
    )
    assert data.load("cifar10", cache=tmp_path).source == "good"
