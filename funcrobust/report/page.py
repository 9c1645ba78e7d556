"""A page on an evaluation. What is shown is data (`Page`), written into ``page.html.j2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from funcrobust.files import atomic_write
from funcrobust.report import html
from funcrobust.report.frame import Frame
from funcrobust.report.html import Mark
from funcrobust.report.records import percent as percent

if TYPE_CHECKING:
    from torch import Tensor

State = Literal["pass", "fail", "not tried"]


@dataclass(frozen=True)
class Share:
    """A share with its interval, all in [0, 1], and what it is the share of."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Shares over a number, in rising order of it."""

    title: str
    across: str
    """What the number is."""
    points: Sequence[tuple[float, Share]]
    marked: float | None = None
    """A number to be marked: the radius that was attacked at, say."""
    even: bool = False
    """Whether the points stand at equal distances, whatever their numbers."""


@dataclass(frozen=True)
class CheckRow:
    """A check's answer."""

    name: str
    state: State
    figure: str


@dataclass(frozen=True)
class Triple:
    """An image, what an attack made of it, and their difference: (C, H, W) in [0, 1]."""

    clean: Tensor
    attacked: Tensor
    difference: Tensor
    true: str
    seen: str
    by: str = ""
    """What broke it, where there was a choice."""


@dataclass(frozen=True)
class Row:
    """Images under a heading."""

    title: str
    note: str
    triples: Sequence[Triple]


@dataclass(frozen=True)
class Page:
    """All that the page says, in its order."""

    title: str
    verdict: str
    meaning: str
    because: Sequence[str]
    mark: Mark
    shares: Sequence[Share]
    shares_note: str
    facts: Mapping[str, str]
    checks: Sequence[CheckRow]
    curves: Sequence[Curve]
    curves_note: str
    rows: Sequence[Row]
    command: str
    made: str


def write(page: Page, path: Path) -> None:
    """Write the page, as a whole or not at all; raise `FuncrobustError` where it cannot be."""
    atomic_write(path, render(page))


def render(page: Page) -> str:
    """Return the page as HTML."""
    return html.render("page.html.j2", page, {"drawn": drawn})


# --- a curve ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A point of a curve in the picture, in its units."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Drawn(Frame):
    """A curve's picture: its frame, and what stands in it."""

    left = 44
    edge = 0.04

    places: Sequence[Place]
    marked: float | None

    @property
    def line(self) -> str:
        """The points of the line."""
        return " ".join(f"{place.x:.1f},{place.y:.1f}" for place in self.places)

    @property
    def grid(self) -> list[tuple[float, str]]:
        """Heights with their shares."""
        return [(self.up(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]


def drawn(curve: Curve) -> Drawn:
    """Lay a curve out; the vertical axis is from 0 to 1 always."""
    numbers = [at for at, _ in curve.points]
    ticks = list(range(len(numbers))) if curve.even else numbers
    low, high = (0, max(ticks, default=1)) if ticks else (0, 1)

    def across(tick: float) -> float:
        return Drawn.across((tick - low) / ((high - low) or 1))

    up = Drawn.up
    places = [
        Place(across(tick), up(s.value), up(s.low), up(s.high), s.name)
        for tick, (_, s) in zip(ticks, curve.points, strict=True)
    ]
    marked = curve.marked
    return Drawn(places, across(marked) if marked is not None and not curve.even else None)
