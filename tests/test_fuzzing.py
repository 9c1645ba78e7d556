"""Changed bytes, in every reader: what was read, or one line; no other error, no end of memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import CASES, _seeded, read, tried
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from funcrobust import data
from funcrobust.commands.apply.pictures import read_images
from funcrobust.core.errors import FuncrobustError
from funcrobust.data import archives
from funcrobust.data.archives import members

FEW = settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_reader_survives(name):
    """It reads what it is for, and of anything else says so."""
    assert read(name, _seeded(name)[1]) == "read"

    @FEW
    @given(st.integers(0, 2**32))
    def changed(seed):
        assert tried(name, seed) in ("read", "refused")

    @FEW
    @given(st.binary(max_size=300))
    def anything(content):
        assert read(name, content) in ("read", "refused")

    changed()
    anything()


def test_the_harness_sees_another_error(monkeypatch):
    """Else the test above could not fail."""

    def broken(folder):
        raise KeyError("no")

    case = CASES["npz"]
    monkeypatch.setitem(CASES, "npz", type(case)(case.file, case.seed, broken))
    with pytest.raises(KeyError):
        read("npz", b"")


# --- bombs --------------------------------------------------------------------------------------


def png(path, width, height):
    """A picture whose header claims a size, and whose pixels are not there."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def big_images(folder):
    for half in ("train", "test"):
        for number in range(6):
            png(folder / "set" / half / "a" / f"{number}.png", 9000, 9000)
    in_memory = data.Streaming(wanted=False)  # by itself it would be streamed, image by image
    return lambda **more: data.load(str(folder / "set"), streaming=in_memory, **more)


def big_arrays(folder):
    """3 GiB of zeros in some megabytes: claimed by the headers, a mebibyte of it there."""
    x, y = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64)
    np.savez(folder / "it.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        raw, {"descr": "|u1", "fortran_order": False, "shape": (2**24, 8, 8, 3)}
    )
    with zipfile.ZipFile(folder / "it.npz") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "it.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content if name[0] == "y" else raw.getvalue() + bytes(2**20))
    return lambda **more: data.load(str(folder / "it.npz"), **more)


def real_arrays(folder):
    x, y = np.zeros((1000, 64, 64, 3), np.uint8), np.zeros(1000, np.int64)
    np.savez_compressed(folder / "it.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return lambda **more: data.load(str(folder / "it.npz"), **({"max_bytes": 2**20} | more))


def big_picture(folder):
    path = png(folder / "it.png", 9_000, 9_000)
    return lambda **more: read_images((path,), (3, 8, 8), **({"max_bytes": 2**20} | more))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (big_images, "is the limit"), (big_arrays, "is shorter than its header says"),
        (real_arrays, "is the limit"), (big_picture, "is the limit"),
    ],
)  # fmt: skip
def test_a_bomb_is_known_by_its_header(tmp_path, make, words):
    import tracemalloc

    load = make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(FuncrobustError, match=words) as refused:
            load()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_the_limit_is_lifted_by_saying_so(tmp_path):
    load = real_arrays(tmp_path)
    with pytest.raises(FuncrobustError, match=r"where 0.000977 is the limit.*--max-data-gib"):
        load()
    assert load(max_bytes=2**26).image_shape == (3, 64, 64)


@pytest.mark.parametrize("kind", ["gz", "tgz"])
def test_archives_are_not_unpacked_without_end(tmp_path, monkeypatch, kind):
    content = CASES["gzip" if kind == "gz" else "tar"].seed(tmp_path)
    (tmp_path / f"it.{kind}").write_bytes(content)
    place = tmp_path if kind == "gz" else tmp_path / "it.tgz"
    assert len(members(place, ["it"])["it"]) == 1000
    monkeypatch.setattr(archives, "LIMIT", 999)
    with pytest.raises(FuncrobustError, match="decoded, where"):
        members(place, ["it"])


def test_a_pictures_content_chooses_no_program(tmp_path):
    """PIL hands EPS to Ghostscript, whatever the file is called."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for half in ("train", "test"):
        (tmp_path / half / "a").mkdir(parents=True)
        (tmp_path / half / "a" / "1.png").write_bytes(eps)
    Image.preinit()
    for load in (
        lambda: data.load(str(tmp_path)),
        lambda: read_images((tmp_path / "test/a/1.png",), (3, 8, 8)),
    ):
        with pytest.raises(FuncrobustError, match="not an image of"):
            load()


def test_a_few_seconds_within_a_limit_of_memory():
    """The script, in a process that may have half a gibibyte beyond what it has."""
    script = Path(__file__).with_name("fuzzing.py")
    done = subprocess.run(
        [sys.executable, script, "--seconds", "3", "--seed", "7", "--gib", "0.5"],
        capture_output=True, text=True, check=False, timeout=300,
        cwd=script.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
