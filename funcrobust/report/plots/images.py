"""Grids of images, every pixel as it is, and rows that show a change."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcrobust.core.errors import FuncrobustError
from funcrobust.report.plots.figure import DPI, new_figure, save, text_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

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
    save(_draw_grid(tiles, count, list(column_labels or []), title, caption), path)


def _draw_grid(
    tiles: list[tuple[str, Any]], count: int, columns: list[str], title: str, caption: str
) -> Figure:
    """Lay out in whole pixels from the top left; matplotlib counts from the bottom left."""
    widest = max(row.shape[2] for _, row in tiles)
    columns = [_broken(name, max(8, widest // 7)) for name in columns]
    labels = [textwrap.fill(label, 26) for label, _ in tiles]
    side = max(text_size(label, _LABEL_SIZE)[0] for label in labels)
    left = _MARGIN + (side + 2 * _GAP if side else 0)
    pitch = max([widest, *(text_size(name, _LABEL_SIZE)[0] + 2 for name in columns)]) + _GAP
    width = max(left + count * pitch - _GAP + _MARGIN, 320 if title or caption else 0)
    title = textwrap.fill(title, max(20, width // 10))
    caption = textwrap.fill(caption, max(20, width // 7))

    texts: list[tuple[float, float, str, dict[str, Any]]] = []
    top = _MARGIN
    if title:
        texts.append((_MARGIN, top, title, {"fontsize": _TITLE_SIZE, "va": "top"}))
        top += text_size(title, _TITLE_SIZE)[1] + 2 * _GAP
    if columns:
        top += max(text_size(name, _LABEL_SIZE)[1] for name in columns) + _GAP
        for index, name in enumerate(columns):
            middle = left + index * pitch + (pitch - _GAP) / 2
            texts.append((middle, top - _GAP, name, {"ha": "center", "va": "bottom"}))
    images: list[tuple[int, int, Any]] = []
    for label, (_, row) in zip(labels, tiles, strict=True):
        height = max(row.shape[1], text_size(label, _LABEL_SIZE)[1])
        texts.append((left - 2 * _GAP, top + height / 2, label, {"ha": "right", "va": "center"}))
        for index, tile in enumerate(row):
            across = left + index * pitch + (pitch - _GAP - tile.shape[1]) // 2
            images.append((across, top + (height - tile.shape[0]) // 2, tile))
        top += height + _GAP
    if caption:
        texts.append((_MARGIN, top + _GAP, caption, {"va": "top"}))
        top += text_size(caption, _LABEL_SIZE)[1] + 2 * _GAP
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
    figure = new_figure((width + 0.01) / DPI, (height + 0.01) / DPI)
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
