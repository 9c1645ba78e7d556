"""Files that are never half-written."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys

import pytest
import torch
from cards import CARD
from problems import ROOT

from funcrobust import checkpoints
from funcrobust.core.errors import FuncrobustError
from funcrobust.files import (
    WriteError,
    also_named,
    atomic_write,
    clear_leftovers,
    free_place,
    is_plain_name,
    place_of,
    temporary_name,
)


def test_a_usual_name_replaces_nothing_and_a_given_one_may(tmp_path):
    there, free = tmp_path / "a.png", tmp_path / "b.png"
    there.write_text("mine")
    assert place_of(None, free) == free
    assert place_of(str(there), free) == there
    with pytest.raises(FuncrobustError, match=r"a\.png is there already: --png .*a\.png replaces"):
        place_of(None, there, flag="--png ")
    free.symlink_to(tmp_path / "nowhere")  # a link is something, too
    with pytest.raises(FuncrobustError, match="is there already"):
        place_of(None, free)


def test_what_is_left_beside_the_work_takes_the_next_free_name(tmp_path):
    usual = tmp_path / "a.b.html"
    taken = [free_place(usual)]
    for _ in range(2):
        taken[-1].write_text("mine")
        taken.append(free_place(usual))
    assert [path.name for path in taken] == ["a.b.html", "a.b-2.html", "a.b-3.html"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a b.c", True), ("é" * 200, True), ("x" * 201, False), ("", False), (".", False),
     ("..", False), ("a/b", False), ("/a", False), ("a/", False), ("a\x1b[2J", False)],
)  # fmt: skip
def test_what_a_plain_name_is(name, plain):
    assert is_plain_name(name) is plain


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


def test_a_full_disk(tmp_path):
    """A real error from the system, in the middle of the data."""
    saved = checkpoints.save(tmp_path / "net", {"w": torch.zeros(3)}, CARD)
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


def test_the_content_is_on_disk_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(kind)
        fsync(descriptor)

    def replaced(*names):
        events.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    atomic_write(tmp_path / "a.txt", "x")
    assert events == ["file", "replace", "folder"]


def test_leftovers_of_the_dead_are_deleted_and_no_others(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
         "from pathlib import Path; from funcrobust.files import temporary_name\n"
         f"temporary_name(Path({str(tmp_path)!r}, 'file')).touch()\n"
         f"temporary_name(Path({str(tmp_path)!r}, 'folder')).mkdir()"],
        check=True,
    )  # fmt: skip
    assert dead.returncode == 0
    assert len(list(tmp_path.iterdir())) == 2
    mine = temporary_name(tmp_path / "file")
    elsewhere = tmp_path / ".file.00000000-1-0123456789ab.tmp"
    for path in (mine, elsewhere, tmp_path / ".somebodys.tmp"):
        path.touch()
    clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere, tmp_path / ".somebodys.tmp"}


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_what_the_first_is_replaced_by(tmp_path, monkeypatch, links):
    one, other = tmp_path / "one", tmp_path / "other"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (tmp_path / "nowhere").stat())
    atomic_write(one, "1")
    also_named(one, other)
    also_named(one, other)
    atomic_write(one, "2")
    assert (one.read_text(), other.read_text()) == ("2", "1")
    also_named(one, other)
    assert other.read_text() == "2"
    assert sorted(tmp_path.iterdir()) == [one, other]
    with pytest.raises(WriteError, match="cannot write"):
        also_named(tmp_path / "nowhere", other)
    assert sorted(tmp_path.iterdir()) == [one, other]
