"""A matplotlib figure without a window, and a PNG of it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcrobust.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def new_figure(width: float, height: float, *, layout: Any = None) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def text_size(text: str, points: float) -> tuple[int, int]:
    """Return width and height of ``text`` in pixels, as it will be drawn."""
    if not text:
        return 0, 0
    figure = new_figure(1, 1)
    box = figure.text(0, 0, text, fontsize=points, parse_math=False).get_window_extent()
    return math.ceil(box.width), math.ceil(box.height)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, as a whole or not at all.

    Texts in it, of which some are from files, are drawn as they are: a $ begins no formula.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    atomic_write(path, picture.getvalue())
