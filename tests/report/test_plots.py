"""Pictures: the colours given are the colours drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from funcrobust.core.errors import FuncrobustError
from funcrobust.report import change_row, curves, image_grid, plots
from funcrobust.report.plots import series
from funcrobust.report.plots.series import series_colour


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(picture, colour):
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_the_colours_given_are_the_colours_drawn(tmp_path):
    corners = torch.zeros(1, 3, 2, 2)
    corners[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    corners[0, :, 0, 1] = torch.tensor([0.0, 1.0, 0.0])
    corners[0, :, 1, 0] = torch.tensor([0.0, 0.0, 1.0])
    corners[0, :, 1, 1] = torch.tensor([1.0005, 1.0, -0.0005])  # rounding is forgiven
    image_grid([("start", corners)], tmp_path / "a.png", column_labels=["cat"])
    picture = pixels(tmp_path / "a.png")
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]):
        assert count(picture, colour) == 48 * 48  # a square of exactly 48, nothing smoothed
    red = np.argwhere((picture == [255, 0, 0]).all(-1))
    blue = np.argwhere((picture == [0, 0, 255]).all(-1))
    assert blue[0][0] == red[0][0] + 48  # the second row of the image is below
    assert blue[0][1] == red[0][1]


def test_gray_and_rows_of_different_lengths(tmp_path):
    rows = [("a", torch.full((2, 1, 28, 28), 0.5)), ("b", torch.zeros(1, 3, 32, 32).bfloat16())]
    image_grid(rows, tmp_path / "a.png", title="T", caption="c " * 200)
    picture = pixels(tmp_path / "a.png")
    assert count(picture, [128, 128, 128]) >= 2 * 84 * 84
    assert count(picture, [0, 0, 0]) >= 96 * 96


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 4, 4), 1.1), "in \\[0, 1\\]"),
        (torch.full((1, 3, 4, 4), math.nan), "in \\[0, 1\\]"),
        (torch.zeros(3, 4, 4), "N, 1 or 3, H, W"),
        (torch.zeros(1, 2, 4, 4), "N, 1 or 3, H, W"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "floats"),
        (torch.zeros(0, 3, 4, 4), "at least one image"),
    ],
)
def test_images_that_cannot_be_drawn(tmp_path, images, message):
    with pytest.raises(FuncrobustError, match=message):
        image_grid([("x", images)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_column_labels_must_match_and_keep_their_newlines(tmp_path):
    with pytest.raises(FuncrobustError, match="2 column labels for 1"):
        image_grid([("x", torch.zeros(1, 3, 4, 4))], tmp_path / "a", column_labels=["a", "b"])
    one = torch.zeros(1, 3, 32, 32)  # the label fits into one line
    sizes = []
    for label in ("cat dog", "cat\ndog", "cat\n\ndog"):
        image_grid([("x", one)], tmp_path / "a.png", column_labels=[label])
        sizes.append(pixels(tmp_path / "a.png").shape)
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[0][1] == sizes[2][1]


def test_a_change_is_gray_where_nothing_changed_and_has_a_sign():
    a = torch.full((1, 1, 1, 3), 0.5)
    shown, factor = change_row(a, a + torch.tensor([0.0, 0.02, -0.02]))
    assert factor == 20  # 50 would leave [0, 1]
    assert torch.allclose(shown, torch.tensor([0.5, 0.9, 0.1]).expand_as(a))
    same, factor = change_row(a, a)
    assert (factor, same.unique().tolist()) == (1, [0.5])


def test_changes_share_a_factor():
    a = torch.zeros(1, 1, 1, 2)
    assert change_row(a, a + 0.25)[1] == 2
    shown, factor = change_row(a, a + 0.02, 2.0)
    assert factor == 2
    assert torch.allclose(shown, torch.full_like(a, 0.54))
    assert change_row(a, a + 1.0)[1] == 1  # nothing smaller than the change itself
    assert change_row(a, a + 1e-9)[1] == 1000
    with pytest.raises(FuncrobustError, match="equal shapes"):
        change_row(a, a[..., :1])
    with pytest.raises(FuncrobustError, match="equal shapes"):
        change_row(a[:0], a[:0])


@pytest.mark.parametrize(("outliers", "clipped", "factor"), [(0, 0, 20), (9, 9, 20), (30, 0, 1)])
def test_a_change_clips_one_value_in_a_hundred_at_most(outliers, clipped, factor):
    a = torch.full((1, 1, 10, 100), 0.5)
    change = torch.full_like(a, 0.02)
    change.view(-1)[:outliers] = 0.45
    shown, used = change_row(a, a + change)
    assert used == factor
    assert int((shown == 1).sum()) == clipped


def test_curves_draw_every_series_in_its_colour(tmp_path):
    metrics = [{"epoch": e, "clean_accuracy": 0.5 + e / 30, "loss": 2.0 - e / 10} for e in range(9)]
    metrics[4]["loss"] = None  # a diverged value, read back from JSON
    metrics[-1]["robust_accuracy"] = 0.4  # a single point
    panels = {"accuracy": ["clean_accuracy", "robust_accuracy"], "loss": ["loss", "absent"]}
    curves(metrics, tmp_path / "c.png", panels=panels | {"drift": ["drift"]}, title="ψ $x$ $")
    picture = pixels(tmp_path / "c.png")
    assert picture.shape[1] == 1320
    assert count(picture, rgb(series_colour("clean_accuracy"))) > 200
    # The point in the plot, besides the sample in the legend.
    robust = np.abs(picture - np.array(rgb(series_colour("robust_accuracy")))).max(-1) <= 2
    assert robust[:, 300:440].sum() >= 12
    assert count(picture, rgb(series_colour("curvature"))) == 0


@pytest.mark.parametrize(
    ("places", "whole"),
    [([1], True), ([1, 2], True), ([0, 1, 2], True), (range(1, 8), True), ([0, 40], True),
     ([500, 1000, 1001], True), ([0.0, 0.5, 1.0], False)],
)  # fmt: skip
def test_epochs_and_steps_tick_at_whole_numbers(monkeypatch, places, whole):
    ticks = []

    def keep(figure, _):
        for axes in figure.axes:
            low, high = axes.get_xlim()
            ticks.append([tick for tick in axes.get_xticks() if low <= tick <= high])

    monkeypatch.setattr(plots.series, "save", keep)
    curves([{"epoch": e, "loss": 1.0} for e in places], "", panels={"loss": ["loss"]})
    plots.lines({"loss": {"a": [(e, 1.0) for e in places], "b": [(1, 2.0)]}}, "", x="steps")
    assert len(ticks) == 2
    for each in ticks:
        assert each
        assert all(float(tick).is_integer() for tick in each) == whole


def test_curves_of_nothing(tmp_path):
    curves([], tmp_path / "c.png", panels={"loss": ["loss"]})
    assert (tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(FuncrobustError, match="at least one panel"):
        curves([], tmp_path / "c.png", panels={})


def test_a_series_has_one_colour_everywhere():
    assert series_colour("robust_accuracy") != series_colour("clean_accuracy")
    assert series_colour("anything") == "#CC79A7"  # in every process


def test_lines_share_one_legend(tmp_path, monkeypatch):
    series = {f"s{i}": [(0, float(i)), (1, 2.0 * i), (5, 3.0)] for i in range(9)}
    drawn = []
    monkeypatch.setattr(plots.series, "save", lambda figure, _: drawn.append(figure))
    plots.lines({"a": series, "b": series, "c": series}, tmp_path, x="steps", title="t")
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(series)
    assert all(axes.get_legend() is None for axes in figure.axes)
    with pytest.raises(FuncrobustError, match="panel"):
        plots.lines({}, tmp_path, x="steps")


def test_bands_are_drawn_between_their_ends(tmp_path):
    series = {"a": [(0.0, 0.8, 0.7, 0.9), (0.5, 0.8, 0.7, 0.9), (1.0, 0.2, 0.1, 0.3)]}
    path = tmp_path / "bands.png"
    plots.bands(series, path, x="radius", y="certified accuracy", about="95 %", title="t")
    picture = pixels(path)
    line, blue = picture.shape[1] // 4, np.array(rgb(plots.series.BLUE))
    column = picture[60:, line]  # under the title, at a quarter of the width: x near 0.2
    ends = np.abs(column - (0.2 * blue + 0.8 * 255)).max(-1) <= 3
    curve = np.abs(column - blue).max(-1) <= 60
    assert ends[: curve.argmax()].any(), "the band is above the curve"
    assert ends[len(curve) - curve[::-1].argmax() :].any(), "and below it"
    for nothing in ({}, {"a": []}):
        with pytest.raises(FuncrobustError, match="at least one series"):
            plots.bands(nothing, path, x="x", y="y", about="")


def test_a_dollar_begins_no_formula(tmp_path):
    """Class names and checkpoints' names are texts of files."""
    name = "$\\frac{$ $x^2$"
    plots.lines({name: {name: [(0, 0.1), (1, 0.2)]}}, tmp_path / "a.png", x=name, title=name)
    row = (name, torch.rand(2, 3, 8, 8))
    plots.image_grid([row], tmp_path / "b.png", column_labels=[name] * 2, title=name, caption=name)
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("label", "names", "percent"),
    [
        ("distance", [], False),
        ("accuracy", [], True),
        ("Success in %", [], True),
        ("figures", ["clean", "pgd20"], True),
        ("figures", ["clean", "loss"], False),
        ("test accuracy", ["loss"], True),
        ("pgd", ["test_worst_before"], True),
        ("drift", ["drift", "heldout_drift"], False),
        ("loss", ["train_loss_clean_rate"], False),
    ],
)
def test_what_is_drawn_in_percent(label, names, percent):
    axes = Figure().add_subplot()
    series._scale(axes, label, names, [0.2, 0.5], [0, 1])
    assert isinstance(axes.yaxis.get_major_formatter(), PercentFormatter) == percent
