"""Curves of a run's metrics as SVG, which follows the page's colours and any width."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from funcrobust.report.frame import Frame

MOST_POINTS = 400
"""Of a line: more are thinned out, a picture has no more columns."""

TICKS = 5
"""Numbers on an axis, at most."""


@dataclass(frozen=True)
class Line:
    """A series: finite numbers over rising numbers, at least one."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    """Of the four that ``style.css.j2`` has."""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes."""

    title: str
    across: str
    lines: Sequence[Line]
    percent: bool = False
    """Whether they are shares, drawn from 0 to 100 %."""


def series(
    records: Sequence[Mapping[str, Any]], name: str, across: str
) -> list[tuple[float, float]]:
    """Return the points of a metric: those that are finite, in rising order, thinned evenly."""
    found: list[tuple[Any, Any]] = [(r.get(across), r.get(name)) for r in records]
    finite = [(x, y) for x, y in found if _is_finite(x) and _is_finite(y)]
    points = sorted((float(x), float(y)) for x, y in finite)
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < 1e30


# --- in the picture -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LaidOut(Frame):
    """A panel's picture: its frame, and what stands in it."""

    lines: Sequence[tuple[Line, str]]
    """Each with the points of its polyline."""
    rows: Sequence[tuple[float, str]]
    """Heights of the grid, with their labels."""
    columns: Sequence[tuple[float, str]]


def laid_out(panel: Panel) -> LaidOut:
    """Lay a panel out."""
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    low, high = (0.0, 1.0) if panel.percent else _room(min(ys), max(ys))
    first, last = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, min(xs) + 1)

    def place(x: float) -> float:
        return LaidOut.across((x - first) / (last - first))

    def height(y: float) -> float:
        return LaidOut.up(min(max((y - low) / (high - low), 0.0), 1.0))

    lines = [
        (line, _polyline([(place(x), height(y)) for x, y in line.points])) for line in panel.lines
    ]
    at = (0, 0.25, 0.5, 0.75, 1) if panel.percent else ticks(low, high)
    rows = [(height(y), f"{y:.0%}" if panel.percent else f"{y:.4g}") for y in at]
    columns = [(place(x), f"{x:.6g}") for x in ticks(first, last) if min(xs) <= x <= max(xs)]
    return LaidOut(lines, rows, columns)


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:  # a line of no length is not to be seen
        (x, y) = points[0]
        points = [(x - 4, y), (x + 4, y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _room(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers within: `TICKS` at most, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / TICKS
    if rough < sys.float_info.min:  # too near for a power of ten between them
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10, 20) if s * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)][:TICKS]
