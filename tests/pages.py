"""Pages, read with the standard library's parser."""

from __future__ import annotations

import re
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
    (policy,) = [m["content"] for m in seen.all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    return seen
