"""Plain files, strict JSON, one schema: a value, or one line that says what was wrong."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from funcrobust.core.errors import FuncrobustError, visible
from funcrobust.reading import parse_json, read_file, structured, user_path

# --- files --------------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a name of theirs has at most 107 bytes


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders there")
@pytest.mark.parametrize("make", [pipe, folder, loop, device, listening])
def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "it")
    with pytest.raises(FuncrobustError, match=r"cannot read .*it: "):
        read_file(tmp_path / "it")


def test_a_file_is_read_whole_or_not_at_all(tmp_path):
    (tmp_path / "it").write_bytes(b"abc")
    assert read_file(tmp_path / "it") == read_file(tmp_path / "it", most=3) == b"abc"
    with pytest.raises(FuncrobustError, match="it has 3 bytes, where at most 2 are read"):
        read_file(tmp_path / "it", most=2)
    for name in ("absent", "a\0b", "x" * 5000):
        with pytest.raises(FuncrobustError, match="cannot read"):
            read_file(tmp_path / name)


def test_nobodys_home():
    assert user_path("~no-such-user/x") == Path("~no-such-user/x")
    assert user_path("~/x") == Path.home() / "x"


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"), ("", "Expecting"), (b"\xff{}", "utf-8"), ("[NaN]", "not a finite"),
        ("[Infinity]", "not a finite"), ("[1e999]", "not a finite"), ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000 + "]" * 100_000, "too deep"), ('{"a":' * 100_000, "too deep"),
        (f"[{10**400}]", "too large"), (f"[{2**63}]", "too large"), ("9" * 10_000, "too large"),
        ('["\\ud800"]', "surrogates"),
    ],
)  # fmt: skip
def test_json_that_others_would_take(text, why):
    with pytest.raises(FuncrobustError, match=f"^x.json: .*{why}") as refused:
        parse_json(text, "x.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_json_as_we_write_it():
    text = '{"a": [1, -9223372036854775808, 2.5e-300], "ψ": null, "b": "\\ud83d\\ude00"}'
    assert parse_json(text, "x") == {"a": [1, -(2**63), 2.5e-300], "ψ": None, "b": "😀"}


# --- the schema ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Something of every kind."""

    name: str
    sizes: tuple[int, int]
    means: tuple[float, ...] = ()
    scores: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": 3}, "expected str, got 3 @ value.name"), ({"sizes": "ab"}, "expected a list"),
        ({"sizes": [1]}, "expected 2 values"), ({"sizes": [1, 2.0]}, "expected int, got 2.0"),
        ({"sizes": [1, True]}, "expected int, got True"), ({"means": "12"}, "expected a list"),
        ({"means": {"0": 1}}, "expected a list"), ({"means": [None]}, "expected float, got None"),
        ({"scores": [1]}, "expected names"), ({"scores": {"a": "b"}}, "expected float, got 'b'"),
        ({"name": ["x"] * 10**6}, "expected str"),
    ],
)  # fmt: skip
def test_another_type_is_refused(change, why):
    with pytest.raises(FuncrobustError, match=why) as refused:
        structured(Shape, {"name": "a", "sizes": [1, 2]} | change, "card")
    assert str(refused.value).startswith("card: ")
    assert len(str(refused.value)) < 500


def test_what_is_lacking_is_named():
    with pytest.raises(FuncrobustError, match=r"^card: it lacks 'sizes'"):
        structured(Shape, {"name": "a"}, "card")
    for value in (None, 3, [], "ab"):
        with pytest.raises(FuncrobustError, match=r"^card: "):
            structured(Shape, value, "card")


def test_numbers_and_lists_become_what_they_are():
    found = structured(Shape, {"name": "a", "sizes": [1, 2], "means": [1, 2.5]}, "card")
    assert found == Shape("a", (1, 2), (1.0, 2.5))
    assert [type(mean) for mean in found.means] == [float, float]


# --- what is said -------------------------------------------------------------------------------


def test_nothing_is_obeyed():
    every = "".join(
        map(chr, [*range(32), *range(127, 160), 0x2028, 0x202E, 0x2066, 0xD800, 0xFEFF])
    )
    said = visible(f"a{every}b")
    assert said.isprintable()
    assert said.startswith("a\\x00")
    assert "\\x1b" in said
    assert "\\u202e" in said
    assert visible("ψ ‖x‖² [brackets] 日本 😀 \\") == "ψ ‖x‖² [brackets] 日本 😀 \\"
    assert visible(visible("\x1b")) == visible("\x1b")
    assert len(visible("x" * 10**6)) < 5000
