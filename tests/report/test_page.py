"""A page is one file that asks nothing of anyone, in its order, whatever the names in it."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from pages import Seen, require_self_contained
from PIL import Image

from funcrobust.core.errors import FuncrobustError
from funcrobust.report import page as report
from funcrobust.report.html import png_uri

HOSTILE = "<script>alert('x')</script>\"\n\x1b[31m&\u202e" + "w" * 300


def shares(*values):
    return [report.Share(f"at {v}", v, max(0, v - 0.1), min(1, v + 0.1)) for v in values]


def made(name="cat", **changed):
    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    curve = report.Curve(
        "Over the radius", "radius", [(i / 4, s) for i, s in enumerate(shares(0.9, 0.5, 0.1))], 0.25
    )
    values = {
        "title": f"Evaluation of {name}", "verdict": "suspicious", "meaning": "It may be lower.",
        "because": ["gradients: 3 of 5 are 0"], "mark": "bad", "shares": shares(0.9, 0.4),
        "shares_note": "500 of them", "facts": {"classifier": name, "seed": "0"},
        "checks": [
            report.CheckRow("gradients", "fail", "3 of 5 are 0"),
            report.CheckRow("images in range", "pass", "[0, 1]"),
            report.CheckRow("transfer", "not tried", "no other network"),
        ],
        "curves": [curve], "curves_note": "on a few",
        "rows": [report.Row("Lost", "here", [report.Triple(image, image, image, name, "dog")])],
        "command": f"python cli.py evaluate '{name}'", "made": "today",
    }  # fmt: skip
    return report.Page(**values | changed)


def test_it_stands_alone_and_in_its_order():
    text = report.render(made())
    seen = require_self_contained(text)
    assert text.startswith("<!DOCTYPE html>")
    assert seen.all("html") == [{"lang": "en"}]
    assert "width=device-width" in next(
        m["content"] for m in seen.all("meta") if m.get("name") == "viewport"
    )
    places = [
        seen.text.index(part) for part in (
            "suspicious", "It may be lower.", "gradients: 3 of 5 are 0", "500 of them",
            "classifier", "✗ FAIL", "✓ pass", "– not tried", "on a few", "Lost",
            "python cli.py evaluate 'cat'",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert seen.tags.index(("section", {"id": "checks"})) < [t for t, _ in seen.tags].index("img")


def test_every_picture_says_what_it_shows_and_every_header_what_it_heads():
    seen = Seen(report.render(made()))
    assert [image["alt"] for image in seen.all("img")] == [
        "cat, clean", "cat, attacked: seen as dog", "their difference, magnified",
    ]  # fmt: skip
    pictures = [svg["aria-label"] for svg in seen.all("svg")]
    assert pictures[1] == "at 0.4: 40.0 %, between 30.0 % and 50.0 %"
    assert pictures[2].startswith("Over the radius: at at 0.9 90.0 %,")
    assert all(svg["role"] == "img" for svg in seen.all("svg"))
    assert all(header["scope"] in ("row", "col") for header in seen.all("th"))


def test_hostile_names_are_text():
    seen = require_self_contained(report.render(made(HOSTILE)))
    spelled = HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\u202e", r"\u202e")
    assert seen.all("img")[0]["alt"] == f"{spelled}, clean"
    assert f"Evaluation of {spelled}" in seen.text
    raw = report.render(made(HOSTILE))
    assert "<script" not in raw
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", raw), (
        "nothing that cannot be seen"
    )


def test_images_are_what_was_given_to_the_byte():
    image = torch.arange(3 * 4 * 5).reshape(3, 4, 5) / 255
    head, _, body = png_uri(image).partition(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert np.array_equal(shown, np.arange(60).reshape(3, 4, 5).transpose(1, 2, 0))
    gray = png_uri(image[:1]).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(gray))).mode == "L"
    for wrong in (image[:2], image[0], image.byte()):
        with pytest.raises(FuncrobustError, match="a page shows float images"):
            png_uri(wrong)


def test_a_curve_lies_where_its_numbers_say():
    points = [(at, report.Share(str(at), v, v / 2, v)) for at, v in ((0, 1.0), (1, 0.5), (4, 0.0))]
    picture = report.drawn(report.Curve("", "", points, marked=1))
    first, middle, last = picture.places
    assert (first.y, last.y) == (picture.top, picture.bottom)
    assert middle.y == pytest.approx((picture.top + picture.bottom) / 2)
    assert middle.low == pytest.approx((middle.y + picture.bottom) / 2), "a quarter of the height"
    assert (middle.x - first.x) / (last.x - first.x) == pytest.approx(1 / 4)
    assert picture.marked == middle.x
    even = report.drawn(report.Curve("", "", points, marked=1, even=True))
    assert even.marked is None
    assert even.places[1].x == pytest.approx((even.places[0].x + even.places[2].x) / 2)
    assert picture.left < first.x < last.x < picture.right


def test_bars_are_as_long_as_the_shares():
    text = report.render(made(shares=[report.Share("a", 0.25, 0.125, 0.5)]))
    assert 'class="bar" x="0" y="1" width="25.00"' in text
    assert 'd="M12.50 5H50.00M12.50 2.5v5M50.00 2.5v5"' in text


def test_a_page_of_little():
    """No checks, no curves, no images: what is left is whole."""
    seen = require_self_contained(
        report.render(made(checks=[], curves=[], rows=[], because=[], mark="none"))
    )
    assert "None were tried." in seen.text
    assert seen.all("img") == []


def test_it_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "page.html"
    report.write(made(), path)
    assert path.read_text(encoding="utf-8") == report.render(made())
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(FuncrobustError, match="cannot write"):
        report.write(made(), path / "below-a-file.html")


def contrast(one, other):
    """The ratio of WCAG 2, 1 to 21."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_can_be_read_by_day_and_by_night():
    """WCAG's 4.5 to 1 for every colour of text, on both grounds it stands on."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    blocks = re.findall(r":root \{(.*?)\}", report.render(made()), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for name in ("ink", "quiet", "good", "open", "bad", "none", "mark"):
            for ground in ("paper", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
