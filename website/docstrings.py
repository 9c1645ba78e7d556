"""Docstrings as pages show them: names are links, subscripts are low, examples are code.

They are written for the prompt, in plain text; a formula's p_y and e^{z} become p<sub>y</sub> and
e<sup>z</sup>, so that no page needs a script, a font or a network for its mathematics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Extension, Function, Module, Object, ParameterKind
from griffe import Parameter as Given
from griffe import Parameters as AllGiven

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"
LISTED = re.compile(r"^::: funcrobust\.(\S+)$", re.MULTILINE)
QUOTED = re.compile(r"(``[^`]+``|`[^`]+`)")
CODE = re.compile(rf"({QUOTED.pattern[1:-1]}|^    .*$)", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Raises|Returns):\n(?:    .*\n?|\n(?=    ))+", re.MULTILINE)
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


def _pieces(text: str) -> list[str]:
    """Return prose and code in turns: an indented line is code, but in a list of arguments."""
    found, at = [""], 0
    for section in (*SECTION.finditer(text), None):
        until = section.start() if section else len(text)
        for code, part in ((CODE, text[at:until]), (QUOTED, section[0] if section else "")):
            first, *others = code.split(part)
            found[-1] += first
            found += others
        at = section.end() if section else until
    return found


def _prose(text: str, known: frozenset[str]) -> str:
    pieces = _pieces(text)
    pieces[::2] = [_formulas(piece) for piece in pieces[::2]]
    pieces[1::2] = [_linked(piece, known) for piece in pieces[1::2]]
    return "".join(pieces)


def _formulas(text: str) -> str:
    low = LOW.sub(lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
    return HIGH.sub(lambda found: f"<sup>{found[1]}</sup>", low)


def _linked(code: str, known: frozenset[str]) -> str:
    name = NAME.fullmatch(code)  # in one pair of backquotes: two are code
    whole = name and _listed_as(name[1], known)
    return f"[{code}][funcrobust.{whole}]" if whole else code


def _listed_as(name: str, known: frozenset[str]) -> str | None:
    """Return the name that is listed: this one, the only one that ends in it, or its class."""
    if name in known or name.rpartition(".")[0] in known:
        return name
    longer = [each for each in known if each.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 else None


def nowhere(text: str, known: frozenset[str]) -> list[str]:
    """Return the names that a docstring points to, in one pair of backquotes, and no page has."""
    found = (NAME.fullmatch(code) for code in _pieces(text)[1::2])
    return [name[1] for name in found if name and not _listed_as(name[1], known)]


class Docstrings(Extension):
    """Rewrites each docstring as it is read, and gives the classes the signatures they lack."""

    def __init__(self) -> None:
        super().__init__()
        self.known = frozenset(listed())
        self.shown = frozenset(name.rpartition(".")[2] for name in self.known)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Show the object's docstring as a page does; say what it points to in vain."""
        if not obj.docstring:
            return
        owner = obj.parent if obj.parent and obj.parent.is_class else obj
        if owner.name in self.shown and not obj.name.startswith("_"):
            for name in nowhere(obj.docstring.value, self.known | frozenset(owner.members)):
                logging.getLogger("docstrings").warning("%s: no page has `%s`", obj.path, name)
        obj.docstring.value = shown(obj.docstring.value, self.known)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Give signatures: to named tuples that of their fields, to what only we build none."""
        for each in _classes(pkg):
            fields = [
                member
                for member in each.members.values()
                if isinstance(member, Attribute) and "property" not in member.labels
                if member.annotation
            ]
            if any(str(base) == "NamedTuple" for base in each.bases):
                each.set_member("__init__", _constructor(each, fields))
            elif any(field.name.startswith("_") for field in fields):
                each.decorators = []  # no dataclass then, for griffe


def _classes(module: Module) -> Iterator[Class]:
    for member in module.members.values():
        if isinstance(member, Class):
            yield member
        elif isinstance(member, Module):
            yield from _classes(member)


def _constructor(of: Class, fields: list[Attribute]) -> Function:
    kind = ParameterKind.positional_or_keyword
    given = [
        Given(field.name, annotation=field.annotation, kind=kind, default=field.value)
        for field in fields
    ]
    return Function(
        "__init__", parent=of, parameters=AllGiven(Given("self", kind=kind), *given), returns="None"
    )
