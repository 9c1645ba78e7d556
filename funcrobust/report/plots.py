"""Pictures of a run: curves of its metrics, grids of images before and after.

Figures are made without pyplot, so nothing here has global state or opens a window, and
matplotlib is loaded only when something is drawn.
"""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcrobust.core.errors import FuncrobustError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

DPI = 100

# Okabe and Ito's colours, told apart with every common form of colour blindness; their yellow is
# left out, it is lost on white.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

# The first word found in a series' name gives its colour: the same in every figure.
_COLOUR_WORDS = {
    "fgsm": ORANGE,
    "robust": VERMILION,
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
_PERCENT_WORDS = frozenset({"accuracy", "acc", "percent"})


def series_colour(name: str) -> str:
    """Return the colour of a series: it depends on its name only."""
    words = _words(name)
    for word, colour in _COLOUR_WORDS.items():
        if word in words:
            return colour
    return _PALETTE[zlib.crc32(name.encode()) % len(_PALETTE)]


def _words(name: str) -> list[str]:
    return name.lower().replace("_", " ").replace("/", " ").replace("-", " ").split()


# --- curves -----------------------------------------------------------------------------------


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
    figure = _figure(4.4 * across, 3.2 * down + (0.4 if title else 0.0), layout="constrained")
    for index, (label, names) in enumerate(panels.items()):
        _panel(figure.add_subplot(down, across, index + 1), metrics, label, names, x)
    if title:
        figure.suptitle(textwrap.fill(title, 52 * across), fontsize=12)
    _save(figure, path)


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
        style, marker, filled = _STYLES[used.get(colour, 0) % len(_STYLES)]
        used[colour] = used.get(colour, 0) + 1
        axes.plot(
            xs,
            ys,
            style,
            color=colour,
            label=name.replace("_", " "),
            linewidth=1.7,
            marker=marker,  # a single point has no line
            markersize=5.0 if len(xs) <= 12 else 3.0,
            markerfacecolor=colour if filled else "white",
        )
        values += [value for value in ys if math.isfinite(value)]
        places += xs
    axes.set_xlabel(x.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    if not values:
        axes.set_ylabel(label)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        return
    _scale(axes, label, names, values, places)
    axes.grid(alpha=0.25, linewidth=0.6)
    if len(axes.lines) > 1 or axes.lines[0].get_label() != label:
        axes.legend(fontsize=8, frameon=False)


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
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if all(float(place).is_integer() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    low, high = min(values), max(values)
    if _is_percent(label, names):
        whole = 1.0 if high <= 1 else 100.0
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=whole))
        axes.set_ylim(0, max(1e-3 * whole, min(1.02 * whole, 1.12 * high)))
    elif low > 0 and high / low > 100 and not _is_rate(names):
        axes.set_yscale("log")
        label += " (log scale)"
    axes.set_ylabel(label)


def _is_percent(label: str, names: Sequence[str]) -> bool:
    if "%" in label or _PERCENT_WORDS & set(_words(label)):
        return True
    return all(_PERCENT_WORDS & set(_words(name)) for name in names)


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
    figure = _figure(5.2 * across, 3.3 * down + 1.2, layout="constrained")
    for index, (label, series) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, index + 1)
        for number, (name, points) in enumerate(series.items()):
            style, marker, filled = _STYLES[number // len(_PALETTE) % len(_STYLES)]
            colour = _PALETTE[number % len(_PALETTE)]
            axes.plot(
                *zip(*points, strict=True), style, color=colour, label=name, linewidth=1.6,
                marker=marker, markersize=4, markerfacecolor=colour if filled else "white",
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5,
                  fontsize=9, frameon=False)  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=12)
    _save(figure, path)


# --- images -----------------------------------------------------------------------------------

_TILE = 96  # pixels a small image is scaled up to, about: four inches hold four of them
_GAP, _MARGIN = 4, 12
_LABEL_SIZE, _TITLE_SIZE = 9.0, 12.0  # points


def image_grid(
    rows: Sequence[tuple[str, Tensor]],
    path: Path,
    *,
    column_labels: Sequence[str] | None = None,
    title: str = "",
    caption: str = "",
) -> None:
    """Draw rows of images under each other and write a PNG.

    Every pixel of an image becomes a square of pixels, exactly: no smoothing, no colour map.

    Args:
        rows: (label, images of shape (N, C, H, W) in [0, 1]); C is 3, or 1 for gray. Rows may
            differ in N, C, H and W.
        path: the PNG, written as a whole or not at all.
        column_labels: one for each column (class names); long ones are broken into lines.
        title: above the grid.
        caption: below it.

    Raises:
        FuncrobustError: no images, a wrong shape, values outside [0, 1] by more than 1e-3 or not
            finite, not one label for each column, or the file cannot be written.
    """
    tiles = [(label, _tiles(label, images)) for label, images in rows]
    count = max((len(row) for _, row in tiles), default=0)
    if count == 0:
        raise FuncrobustError("image_grid needs at least one image")
    if column_labels is not None and len(column_labels) != count:
        raise FuncrobustError(f"{len(column_labels)} column labels for {count} columns")
    _save(_draw_grid(tiles, count, list(column_labels or []), title, caption), path)


def _draw_grid(
    tiles: list[tuple[str, Any]], count: int, columns: list[str], title: str, caption: str
) -> Figure:
    """Lay out in whole pixels from the top left; matplotlib counts from the bottom left."""
    widest = max(row.shape[2] for _, row in tiles)
    columns = [_broken(name, max(8, widest // 7)) for name in columns]
    labels = [textwrap.fill(label, 26) for label, _ in tiles]
    side = max(_text_size(label, _LABEL_SIZE)[0] for label in labels)
    left = _MARGIN + (side + 2 * _GAP if side else 0)
    pitch = max([widest, *(_text_size(name, _LABEL_SIZE)[0] + 2 for name in columns)]) + _GAP
    width = max(left + count * pitch - _GAP + _MARGIN, 320 if title or caption else 0)
    title = textwrap.fill(title, max(20, width // 10))
    caption = textwrap.fill(caption, max(20, width // 7))

    texts: list[tuple[float, float, str, dict[str, Any]]] = []
    top = _MARGIN
    if title:
        texts.append((_MARGIN, top, title, {"fontsize": _TITLE_SIZE, "va": "top"}))
        top += _text_size(title, _TITLE_SIZE)[1] + 2 * _GAP
    if columns:
        top += max(_text_size(name, _LABEL_SIZE)[1] for name in columns) + _GAP
        for index, name in enumerate(columns):
            middle = left + index * pitch + (pitch - _GAP) / 2
            texts.append((middle, top - _GAP, name, {"ha": "center", "va": "bottom"}))
    images: list[tuple[int, int, Any]] = []
    for label, (_, row) in zip(labels, tiles, strict=True):
        height = max(row.shape[1], _text_size(label, _LABEL_SIZE)[1])
        texts.append((left - 2 * _GAP, top + height / 2, label, {"ha": "right", "va": "center"}))
        for index, tile in enumerate(row):
            across = left + index * pitch + (pitch - _GAP - tile.shape[1]) // 2
            images.append((across, top + (height - tile.shape[0]) // 2, tile))
        top += height + _GAP
    if caption:
        texts.append((_MARGIN, top + _GAP, caption, {"va": "top"}))
        top += _text_size(caption, _LABEL_SIZE)[1] + 2 * _GAP
    return _compose(width, top - _GAP + _MARGIN, images, texts)


def _broken(text: str, width: int) -> str:
    """Break long lines; the line breaks that are there stay."""
    lines = (textwrap.fill(line, width, break_long_words=False) for line in text.split("\n"))
    return "\n".join(lines)


def _compose(
    width: int,
    height: int,
    images: list[tuple[int, int, Any]],
    texts: list[tuple[float, float, str, dict[str, Any]]],
) -> Figure:
    # A little over the whole number: matplotlib rounds down when inches become pixels again.
    figure = _figure((width + 0.01) / DPI, (height + 0.01) / DPI)
    for across, down, tile in images:
        figure.figimage(tile, across, height - down - tile.shape[0], origin="upper")
    for x, y, text, style in texts:
        style = {"fontsize": _LABEL_SIZE, "parse_math": False, **style}
        figure.text(x / width, 1 - y / height, text, **style)
    return figure


def _tiles(label: str, images: Tensor) -> Any:
    """Return numpy uint8 (N, H·s, W·s, 3): checked, and each pixel repeated s × s."""
    import torch

    where = f"image_grid, row {label!r}"
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        raise FuncrobustError(
            f"{where}: images must be (N, 1 or 3, H, W), got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise FuncrobustError(f"{where}: images must be floats in [0, 1], got {images.dtype}")
    values = images.detach().to("cpu", torch.float32)
    if values.numel():
        low, high = float(values.min()), float(values.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also when either is NaN
            raise FuncrobustError(f"{where}: images must be in [0, 1], got [{low:.4g}, {high:.4g}]")
    scale = max(1, round(_TILE / max(values.shape[2:])))
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def change_row(a: Tensor, b: Tensor, factor: float | None = None) -> tuple[Tensor, float]:
    """Return ``(0.5 + factor · (b − a), factor)`` in [0, 1]: gray where nothing changed.

    The factor is the largest of 1, 2, 5, 10, 20, ... 1000 that cuts off at most one value in a
    hundred (the maximum alone would leave all but a few pixels gray), unless it is given: rows
    that are to be compared need the same one. Say it in the label.

    Args:
        a: images (N, C, H, W) in [0, 1].
        b: the same shape.
        factor: of an earlier row, to share its scale.

    Raises:
        FuncrobustError: the shapes differ, or there is nothing to compare.
    """
    if a.shape != b.shape or a.numel() == 0:
        raise FuncrobustError(
            f"change_row needs two equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    change = (b - a).detach().float()
    if factor is None:
        most = float(change.abs().flatten().quantile(0.99))
        steps = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
        factor = max((s for s in steps if s * most <= 0.5), default=1.0) if most > 0 else 1.0
    return (0.5 + factor * change).clamp(0, 1), factor


# --- matplotlib -------------------------------------------------------------------------------


def _figure(width: float, height: float, *, layout: Any = None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _text_size(text: str, points: float) -> tuple[int, int]:
    """Return width and height of ``text`` in pixels, as it will be drawn."""
    if not text:
        return 0, 0
    figure = _figure(1, 1)
    box = figure.text(0, 0, text, fontsize=points, parse_math=False).get_window_extent()
    return math.ceil(box.width), math.ceil(box.height)


def _save(figure: Figure, path: Path) -> None:
    from funcrobust.files import atomic_write

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    atomic_write(path, picture.getvalue())
