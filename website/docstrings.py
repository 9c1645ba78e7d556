"""Docstrings as pages show them: names are links, subscripts are low, examples are code.

They are written for the prompt, in plain text; a formula's p_y and e^{z} become p<sub>y</sub> and
e<sup>z</sup>, so that no page needs a script, a font or a network for its mathematics.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"
LISTED = re.compile(r"^::: funcrobust\.(\S+)$", re.MULTILINE)
CODE = re.compile(r"(``[^`]+``|`[^`]+`|^    .*$)", re.MULTILINE)
NAME = re.compile(r"`(?:fr\.|funcrobust\.)?([A-Za-z_][\w.]*)`")
EXAMPLE = re.compile(r"^>>> .*\n(?:.+\n?)*", re.MULTILINE)
LOW = re.compile(r"(?<=[\w)‖′|])_(?:\{([^{}]+)\}|([a-zA-Z0-9∞]|[0-9+−-]+)(?!\w|\.\w))")
HIGH = re.compile(r"\^\{([^{}]+)\}")


def listed() -> list[str]:
    """Return what the pages of the reference list, without ``funcrobust.``, in their order."""
    return [
        name for page in sorted(PAGES.glob("*.md")) for name in LISTED.findall(page.read_text())
    ]


def shown(text: str, known: frozenset[str]) -> str:
    """Return a docstring's text in Markdown, with links to the ``known`` names."""
    examples = EXAMPLE.split(text)
    code = EXAMPLE.findall(text)
    parts = [_prose(part, known) for part in examples]
    for i, lines in enumerate(code):
        parts[i] += f"```pycon\n{lines.rstrip()}\n```\n"
    return "".join(parts)


def _prose(text: str, known: frozenset[str]) -> str:
    pieces = CODE.split(text)  # prose and code in turns
    pieces[::2] = [_formulas(piece) for piece in pieces[::2]]
    pieces[1::2] = [_linked(piece, known) for piece in pieces[1::2]]
    return "".join(pieces)


def _formulas(text: str) -> str:
    low = LOW.sub(lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
    return HIGH.sub(lambda found: f"<sup>{found[1]}</sup>", low)


def _linked(code: str, known: frozenset[str]) -> str:
    name = NAME.fullmatch(code)  # in one pair of backquotes: two are code
    return f"[{code}][funcrobust.{name[1]}]" if name and name[1] in known else code


class Docstrings(Extension):
    """Rewrites each docstring as it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.known = frozenset(listed())

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Show the object's docstring as a page does."""
        if obj.docstring:
            obj.docstring.value = shown(obj.docstring.value, self.known)
