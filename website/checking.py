"""What a built site must be: every link and anchor leads somewhere, and nothing is fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, and where it is named. Of <link> only some kinds are fetched.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LINKED = ("stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest")
STYLE = re.compile(r"(?:@import|url\()\s*['\"]?(?:https?:)?//")


class Page(HTMLParser):
    """What a page fetches, what it links to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a tag."""
        said = {name: value or "" for name, value in attrs}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        kinds = said.get("rel", "").split()
        if tag == "link" and any(kind in LINKED for kind in kinds):
            self.fetched.append(said.get("href", ""))
        elif tag in FETCHED and FETCHED[tag] in said:
            self.fetched.append(said[FETCHED[tag]])
        elif tag == "a" and "href" in said:
            self.links.append(said["href"])


def faults(site: Path) -> list[str]:
    """Return what is wrong with the site, a line each."""
    files = [file for file in sorted(site.rglob("*.html")) if file.name != "404.html"]
    pages = {file.resolve(): Page(file.read_text()) for file in files}
    found = []
    for file, page in pages.items():
        here = file.relative_to(site.resolve())
        found += [f"{here} fetches {url}" for url in page.fetched if _is_elsewhere(url)]
        for url in (*page.fetched, *page.links):
            if not _is_elsewhere(url) and (fault := _leads_nowhere(url, file, pages)):
                found.append(f"{here}: {fault}")
    for sheet in sorted(site.rglob("*.css")):
        if STYLE.search(sheet.read_text()):
            found.append(f"{sheet.relative_to(site)} fetches from elsewhere")
    return found


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") or bool(parts.netloc)


def _leads_nowhere(url: str, file: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(url)
    if parts.scheme:  # data:, mailto:
        return None
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.is_file():
        return f"there is no {url}"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return f"{url} has no such anchor"
    return None
