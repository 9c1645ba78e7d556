"""Curves as SVG: where their points lie, and round numbers at their axes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from funcrobust.report.panels import MOST_POINTS, Line, Panel, laid_out, series, ticks


def places(line):
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_points_lie_where_their_numbers_say():
    panel = Panel("", "update", [Line("a", [(0, 0.0), (1, 0.5), (4, 1.0)])], percent=True)
    picture = laid_out(panel)
    ((_, drawn),) = picture.lines
    first, middle, last = places(drawn)
    assert (first[1], last[1]) == (picture.bottom, picture.top)
    assert middle[1] == pytest.approx((picture.top + picture.bottom) / 2)
    assert (middle[0] - first[0]) / (last[0] - first[0]) == pytest.approx(1 / 4, abs=1e-3)
    assert [label for _, label in picture.rows] == ["0%", "25%", "50%", "75%", "100%"]


def test_lines_share_their_axes():
    lines = [Line("a", [(0, 1.0), (10, 3.0)]), Line("b", [(5, 2.0)])]
    picture = laid_out(Panel("", "", lines))
    (_, a), (_, b) = picture.lines
    middle = tuple(sum(pair) / 2 for pair in zip(*places(a), strict=True))
    left, right = places(b)
    assert ((left[0] + right[0]) / 2, left[1]) == pytest.approx(middle, abs=0.06), "a dash"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within(low, length):
    high = low + length
    found = ticks(low, high)
    assert 2 <= len(found) <= 5
    slack = 1e-6 * length
    assert all(low - slack <= tick <= high + slack for tick in found)
    step = found[1] - found[0]
    power = 10.0 ** math.floor(math.log10(1.01 * step))
    step = min((power, 2 * power, 5 * power), key=lambda wanted: abs(wanted - step))
    rounding = 1e-6 + 2e-15 * (abs(low) + abs(high)) / step
    assert all(abs((b - a) / step - 1) < rounding for a, b in itertools.pairwise(found))
    assert all(abs(tick / step - round(tick / step)) < rounding for tick in found)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e29, 1e29)), min_size=1, max_size=9))
@example([(0.0, 0.0), (5e-324, 5e-324)])
@example([(0.0, 0.0), (3e-308, 3e-308)])
def test_every_picture_is_within_its_frame(points):
    picture = laid_out(Panel("", "", [Line("a", sorted(points))]))
    for x, y in places(picture.lines[0][1]):
        assert 0 <= x <= picture.width
        assert picture.top <= y <= picture.bottom < picture.height


def test_what_is_no_number_is_no_point_and_thousands_are_thinned():
    bad = [None, "3", True, math.nan, math.inf, 1e300, [1], {}]
    records = [{"step": i, "x": value} for i, value in enumerate([*bad, 2.5])]
    assert series(records, "x", "step") == [(8.0, 2.5)]
    many = [{"step": i, "x": float(i)} for i in range(5000)]
    thinned = series(many, "x", "step")
    assert len(thinned) == MOST_POINTS
    assert (thinned[0], thinned[-1]) == ((0.0, 0.0), (4999.0, 4999.0))
    assert len(set(thinned)) == MOST_POINTS
