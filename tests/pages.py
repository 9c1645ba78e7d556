"""Pages, read with the standard library's parser, and shown by a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser


class Seen(HTMLParser):
    """Tags with their attributes and all text, in order; tags that are closed in their order."""

    VOID = ("meta", "img", "br", "rect", "path", "circle", "polyline")

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def require_self_contained(text):
    """No script, no link, nothing that a browser would fetch."""
    seen = Seen(text)
    for tag, attributes in seen.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("srcset", "action", "background", "data", "xlink:href"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#")), value[:60]
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    (policy,) = [
        m["content"] for m in seen.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    return seen


CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOST = """<body><iframe src="page.html" style="width:{width}px;height:2000px;border:0" onload="
let d = this.contentDocument, w = this.contentWindow;
document.body.dataset.found = JSON.stringify({{
  width: w.innerWidth, scroll: d.documentElement.scrollWidth,
  ground: w.getComputedStyle(d.body).backgroundColor,
  whole: [...d.images].every(image => image.complete && image.naturalWidth > 0),
  fetched: w.performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))
}})"></iframe></body>"""


def require_shown_well(text, folder, width, dark):
    """Not wider than the window, on the right ground, all images there, and nothing fetched."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "host.html").write_text(HOST.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
            "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=5000", "--dump-dom", (folder / "host.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(Seen(done.stdout).all("body")[0]["data-found"])
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["ground"] == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert found["whole"]
    assert set(found["fetched"]) <= {"data:"}
