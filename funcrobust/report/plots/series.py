"""Curves: the metrics of a run over its epochs, and series side by side."""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcrobust.core.errors import FuncrobustError
from funcrobust.report.plots.figure import new_figure, save
from funcrobust.report.records import is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with every common form of colour blindness; their yellow is
# left out, it is lost on white.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

# The first word found in a series' name gives its colour: the same in every figure.
_COLOUR_WORDS = {
    "fgsm": ORANGE,
    "attacked": ORANGE,
    "robust": VERMILION,
    "worst": BLACK,
    "pgd": VERMILION,
    "adversarial": VERMILION,
    "clean": BLUE,
    "curvature": GREEN,
    "cure": GREEN,
    "drift": PURPLE,
    "lr": SKY,
    "rate": SKY,
    "loss": BLACK,
    "accuracy": BLUE,
}
_STYLES = (("-", "o", True), ("--", "s", False), (":", "^", True), ("-.", "D", False))


def series_colour(name: str) -> str:
    """Return the colour of a series: it depends on its name only."""
    words = _words(name)
    for word, colour in _COLOUR_WORDS.items():
        if word in words:
            return colour
    return _PALETTE[zlib.crc32(name.encode()) % len(_PALETTE)]


def _words(name: str) -> list[str]:
    return name.lower().replace("_", " ").replace("/", " ").replace("-", " ").split()


def curves(
    metrics: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    panels: Mapping[str, Sequence[str]],
    x: str = "epoch",
    title: str = "",
) -> None:
    """Draw one small panel for each entry of ``panels`` and write a PNG.

    Args:
        metrics: records as :meth:`RunFolder.metrics` gives them. A record may lack a series (the
            line goes on to the next record that has it); None or NaN leaves a gap.
        path: the PNG, written as a whole or not at all.
        panels: the y label of a panel, and the names of the series in it. A label or series
            that says "accuracy" or "%" is drawn in percent; its values are fractions in [0, 1].
        x: the name of the horizontal axis in the records.
        title: over the whole figure.

    Positive values that span more than a factor of 100 are drawn on a log scale, learning rates
    excepted.

    Raises:
        FuncrobustError: no panels, or the file cannot be written.
    """
    if not panels:
        raise FuncrobustError("curves needs at least one panel")
    across = min(3, len(panels)) if len(panels) != 4 else 2
    down = math.ceil(len(panels) / across)
    figure = new_figure(4.4 * across, 3.2 * down + (0.4 if title else 0.0), layout="constrained")
    for index, (label, names) in enumerate(panels.items()):
        _panel(figure.add_subplot(down, across, index + 1), metrics, label, names, x)
    if title:
        figure.suptitle(textwrap.fill(title, 52 * across), fontsize=12)
    save(figure, path)


def _panel(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], label: str, names: Sequence[str], x: str
) -> None:
    used: dict[str, int] = {}
    values: list[float] = []
    places: list[float] = []
    for name in names:
        xs, ys = _series(metrics, name, x)
        if not any(map(math.isfinite, ys)):
            continue
        colour = series_colour(name)
        # Two of one colour are told apart by line and marker.
        _line(axes, xs, ys, name.replace("_", " "), colour, used.get(colour, 0))
        used[colour] = used.get(colour, 0) + 1
        values += [value for value in ys if math.isfinite(value)]
        places += xs
    axes.set_xlabel(x.replace("_", " "))
    if not values:
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        return
    _scale(axes, label, names, values, places)
    if len(axes.lines) > 1 or axes.lines[0].get_label() != label:
        axes.legend(fontsize=8, frameon=False)


def _line(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], label: str, colour: str, style: int
) -> None:
    """Draw one series in one of the styles that tell lines of a colour apart."""
    line, marker, filled = _STYLES[style % len(_STYLES)]
    axes.plot(
        xs,
        ys,
        line,
        color=colour,
        label=label,
        linewidth=1.7,
        marker=marker,  # a single point has no line
        markersize=5.0 if len(xs) <= 12 else 3.0,
        markerfacecolor=colour if filled else "white",
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _series(
    metrics: Sequence[Mapping[str, Any]], name: str, x: str
) -> tuple[list[float], list[float]]:
    xs, ys = [], []
    for record in metrics:
        place, value = record.get(x), record.get(name, "absent")
        if not isinstance(place, int | float) or not isinstance(value, int | float | None):
            continue
        xs.append(place)
        finite = value is not None and math.isfinite(value)
        ys.append(float(value) if finite and value is not None else math.nan)
    return xs, ys


def _scale(
    axes: Axes, label: str, names: Sequence[str], values: list[float], places: list[float]
) -> None:
    from matplotlib.ticker import PercentFormatter

    _tick_at_wholes(axes, places)
    low, high = min(values), max(values)
    if is_share(label) or (names and all(map(is_share, names))):
        whole = 1.0 if high <= 1 else 100.0
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=whole))
        axes.set_ylim(0, max(1e-3 * whole, min(1.02 * whole, 1.12 * high)))
    elif low > 0 and high / low > 100 and not _is_rate(names):
        axes.set_yscale("log")
        label += " (log scale)"
    axes.set_ylabel(label)


def _tick_at_wholes(axes: Axes, places: Sequence[float]) -> None:
    """Let the horizontal axis tick at whole numbers alone where all that is drawn lies at such."""
    from matplotlib.ticker import MaxNLocator

    if places and all(float(place).is_integer() for place in places):
        # A run of one epoch has one tick: by default two at least are wanted, if by halves.
        locator = MaxNLocator(nbins=6, integer=True, min_n_ticks=1)
        axes.xaxis.set_major_locator(locator)


def _is_rate(names: Sequence[str]) -> bool:
    # A schedule that ends near zero would look like a cliff on a log scale.
    return all({"lr", "rate"} & set(_words(name)) for name in names)


def lines(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
    *,
    x: str,
    title: str = "",
) -> None:
    """Draw the same series in each of several panels, one legend for all, and write a PNG.

    Args:
        panels: label of the vertical axis to series by name, each a sequence of (x, y).
        path: the PNG, written as a whole or not at all.
        x: label of the horizontal axis.
        title: over the whole figure.

    Raises:
        FuncrobustError: no panels, or the file cannot be written.
    """
    if not panels:
        raise FuncrobustError("lines needs at least one panel")
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(5.2 * across, 3.3 * down + 1.2, layout="constrained")
    for index, (label, series) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, index + 1)
        for number, (name, points) in enumerate(series.items()):
            style, colour = divmod(number, len(_PALETTE))
            xs, ys = zip(*points, strict=True)
            _line(axes, xs, ys, name, _PALETTE[colour], style)
        _tick_at_wholes(axes, [place for points in series.values() for place, _ in points])
        axes.set(xlabel=x, ylabel=label)
        axes.set_ylim(bottom=0)
    widest = max((len(name) for series in panels.values() for name in series), default=1)
    columns = int(5.2 * across / (0.6 + 0.075 * widest))  # inches: a line, and the text at 9 points
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center",
                  ncols=max(1, min(5, columns)),
                  fontsize=9, frameon=False)  # fmt: skip
    if title:
        figure.suptitle(textwrap.fill(title, 60 * across), fontsize=12)
    save(figure, path)


def bands(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    path: Path,
    *,
    x: str,
    y: str,
    about: str,
    title: str = "",
    mark: tuple[float, str] | None = None,
) -> None:
    """Draw series of steps down with an interval around each, and write a PNG.

    Args:
        series: by name, each a sequence of (x, y, low, high), ascending in x. From one x to the
            next the latter's values hold.
        path: the PNG, written as a whole or not at all.
        x: label of the horizontal axis.
        y: label of the vertical one; "accuracy" or "%" in it is drawn in percent.
        about: what the band is, for the legend.
        title: over the figure.
        mark: an x that a vertical line marks, and its name.

    Raises:
        FuncrobustError: no series, an empty one, or the file cannot be written.
    """
    if not series or not all(series.values()):
        raise FuncrobustError("bands needs at least one series, and a point in each")
    figure = new_figure(6.4, 4.2, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(series.items()):
        style, colour = divmod(number, len(_PALETTE))
        xs, ys, low, high = zip(*points, strict=True)
        axes.fill_between(xs, low, high, step="pre", color=_PALETTE[colour], alpha=0.2,
                          linewidth=0, label=about if number == 0 else None)  # fmt: skip
        axes.plot(xs, ys, _STYLES[style % len(_STYLES)][0], drawstyle="steps-pre", label=name,
                  color=_PALETTE[colour], linewidth=1.7)  # fmt: skip
    if mark is not None:
        axes.axvline(mark[0], color="0.4", linestyle=":", linewidth=1.2, label=mark[1])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _scale(axes, y, [], *([p[i] for all_ in series.values() for p in all_] for i in (3, 0)))
    axes.set(xlabel=x, xlim=(min(p[0][0] for p in series.values()), None))
    axes.legend(fontsize=9, frameon=False)
    if title:
        figure.suptitle(textwrap.fill(title, 70), fontsize=12)
    save(figure, path)
