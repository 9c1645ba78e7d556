"""A build is as strict as it says: a small site, well, and with each of its pages broken."""

from __future__ import annotations

import subprocess
import sys

import pytest
from problems import ROOT

CONFIG = """
[project]
site_name = "small"
site_dir = "build/site"
nav = [{ "Home" = "index.md" }]
[project.theme]
font = false
[project.plugins.markdown-exec]
[project.plugins.mkdocstrings.handlers.python]
"""
BROKEN = {
    "code": ('```python exec="true"\nraise ValueError("planted")\n```', "ValueError: planted"),
    "command": ('```console exec="true"\n$ python -c "raise SystemExit(3)"\n```', "code block"),
    "link": ("[away](away.md)", "strict"),
    "name": ("::: math.no_such_name", "no_such_name"),
    "picture": ('<img src="no.png">', "there is no no.png"),
    "script": ('<script src="https://example.org/a.js"></script>', "fetches"),
}


def built(folder, text):
    """The exit code and what is said of a site of one page."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    (folder / "zensical.toml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, str(ROOT / "website" / "build.py"), str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_page_that_is_well(tmp_path):
    code, said = built(tmp_path, '```python exec="true"\nprint("*fine*")\n```\n\n[up](#home)')
    assert (code, said.strip()) == (0, "No issues found")
    assert "<em>fine</em>" in (tmp_path / "build" / "site" / "index.html").read_text()


@pytest.mark.parametrize("what", BROKEN)
def test_a_page_that_is_not(tmp_path, what):
    text, expected = BROKEN[what]
    code, said = built(tmp_path, text)
    assert code == 1
    assert expected in said
