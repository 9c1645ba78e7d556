"""The check of the built site finds what it is for."""

from __future__ import annotations

import checking
import pytest


@pytest.fixture
def site(tmp_path):
    """Two pages that are as they should be."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "own.css").write_text("a { background: url(data:image/png;base64,) }")
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="own.css"><a href="deep/page.html#ψ">ψ</a>'
        '<a href="https://arxiv.org/abs/1706.06083">a link, which nobody fetches</a>'
    )
    (tmp_path / "deep" / "page.html").write_text(
        '<h1 id="ψ">ψ</h1><a href="../index.html">home</a><a href="#%CF%88">up</a>'
    )
    return tmp_path


def test_a_good_site_has_no_faults(site):
    assert checking.faults(site) == []


@pytest.mark.parametrize(
    ("tag", "fault"),
    [
        ('<a href="no.html">', "there is no no.html"),
        ('<a href="deep/page.html#no">', "deep/page.html#no has no such anchor"),
        ('<a href="#no">', "#no has no such anchor"),
        ('<img src="no.png">', "there is no no.png"),
        ('<script src="https://example.org/a.js">', "fetches https://example.org/a.js"),
        ('<img src="//example.org/a.png">', "fetches //example.org/a.png"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "fetches"),
    ],
)
def test_a_fault_is_found(site, tag, fault):
    page = site / "index.html"
    page.write_text(page.read_text() + tag)
    (found,) = checking.faults(site)
    assert fault in found
    assert "index.html" in found


@pytest.mark.parametrize(
    "rule", ["@import 'https://x.org/a.css'", "a { src: url(//x.org/f.woff) }"]
)
def test_a_style_that_fetches_is_found(site, rule):
    (site / "own.css").write_text(rule)
    assert checking.faults(site) == ["own.css fetches from elsewhere"]
