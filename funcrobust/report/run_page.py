"""A page on a run, or on two beside each other: what is shown is data, the templates are beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from funcrobust.files import atomic_write
from funcrobust.report import html
from funcrobust.report.html import Mark
from funcrobust.report.panels import Panel, laid_out
from funcrobust.report.records import figure

if TYPE_CHECKING:
    from torch import Tensor

VERDICTS: dict[str | None, Mark] = {
    "invalid": "bad", "suspicious": "bad", "upper bound": "open", "holds": "good", None: "none",
}  # fmt: skip
"""How the verdict of an evaluation is set off."""


@dataclass(frozen=True)
class OptionRow:
    """An option, as the command line says it, and what it would have been."""

    flag: str
    value: str
    usual: str = ""


@dataclass(frozen=True)
class Evaluated:
    """The verdict of an evaluation."""

    verdict: str
    figure: str
    because: Sequence[str]
    mark: Mark


@dataclass(frozen=True)
class Picture:
    """A PNG file's content."""

    name: str
    png: bytes
    about: str


@dataclass(frozen=True)
class RunPage:
    """All that the page on a run says, in its order."""

    title: str
    state: str
    meaning: str
    mark: Mark
    renewed_every: int
    """Seconds after which a browser looks again; 0: it need not."""
    beneath: str
    """What the options are compared with."""
    differing: Sequence[OptionRow]
    options: Sequence[OptionRow]
    figures: Mapping[str, str]
    figures_note: str
    evaluation: Evaluated | None
    panels: Sequence[Panel]
    pictures: Sequence[Picture]
    commands: Mapping[str, str]
    """By what they do."""
    facts: Mapping[str, str]
    cite: Sequence[str]
    """Lines of BibTeX."""
    papers: Sequence[str]
    made: str


@dataclass(frozen=True)
class Under:
    """An image under one of the networks."""

    name: str
    attacked: Tensor
    difference: Tensor
    before: str
    """What the network sees in it, clean and attacked."""
    after: str


@dataclass(frozen=True)
class Compared:
    """An image (C, H, W) in [0, 1] under both networks."""

    clean: Tensor
    true: str
    under: Sequence[Under]


@dataclass(frozen=True)
class ComparisonPage:
    """All that the page on two runs says."""

    title: str
    names: Sequence[str]
    figures: Mapping[str, Sequence[str]]
    differing: Mapping[str, Sequence[str]]
    panels: Sequence[Panel]
    compared: Sequence[Compared]
    images_note: str
    pictures: Mapping[str, Sequence[Picture]]
    command: str
    made: str


def render(page: RunPage | ComparisonPage) -> str:
    """Return the page as HTML."""
    template = "run.html.j2" if isinstance(page, RunPage) else "comparison.html.j2"
    return html.render(template, page, {"laid_out": laid_out, "figure": figure})


def write(page: RunPage | ComparisonPage, path: Path) -> None:
    """Write the page, as a whole or not at all; raise `FuncrobustError` where it cannot be."""
    atomic_write(path, render(page))
