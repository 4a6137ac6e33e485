"""SVG plots: well-formed and to scale for any input."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitslim.report.pictures.plots import Mark, Series, bar_plot, dot_plot, nice_ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_to_scale_and_start_at_zero() -> None:
    marks = [Mark(10.0, "10", "ten"), Mark(5.0, "5", "five"), None, Mark(2.5, "2.5", "two and a half")]
    root = ET.fromstring(bar_plot("Size", "MB", ["a", "b", "c", "d"], marks, "counted"))
    bars = list(root.iter(f"{SVG}rect"))
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert len({bar.get("x") for bar in bars}) == 1
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.01)
    assert widths[0] / widths[2] == pytest.approx(4, rel=0.01)


def test_values_are_available_to_screen_readers_and_as_tooltips() -> None:
    root = ET.fromstring(bar_plot("Latency", "ms", ["00-dense"], [Mark(3.1, "3.10 ms", "7 runs")], "measured"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Latency. 00-dense 3.10 ms"
    assert "00-dense: 7 runs" in [title.text for title in root.iter(f"{SVG}title")]


def test_dots_stay_inside_the_axis() -> None:
    series = [
        Series("val", (Mark(97.8, "97.8", "", 1.2), Mark(96.0, "96.0", ""))),
        Series("other", (None, Mark(99.0, "99", ""))),
    ]
    root = ET.fromstring(dot_plot("Accuracy", "%", ["a", "b"], series))
    grid = sorted(float(line.get("x1", "0")) for line in root.iter(f"{SVG}line"))
    dots = [float(circle.get("cx", "0")) for circle in root.iter(f"{SVG}circle")]
    assert len(dots) == 3
    assert grid[0] <= min(dots) <= max(dots) <= grid[-1]


@given(st.text(), st.text(), st.lists(st.floats(0, 1e12), max_size=4))
def test_any_text_and_number_gives_well_formed_svg(label: str, hint: str, values: list[float]) -> None:
    marks = [Mark(value, hint, hint) for value in values]
    labels = [label] * len(values)
    ET.fromstring(bar_plot(label, hint, labels, marks, "counted"))
    ET.fromstring(dot_plot(label, hint, labels, [Series(label, tuple(marks))]))


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_few_and_cover_the_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 8
    assert list(ticks) == sorted(set(ticks))
    slack = 1e-6 * max(span, abs(low), 1e-3)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack


def test_ticks_of_an_infinite_range_are_finite() -> None:
    assert all(map(math.isfinite, nice_ticks(0.0, math.inf)))
