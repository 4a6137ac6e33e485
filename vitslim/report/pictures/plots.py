"""Plots as inline SVG with one row per stage.

Colors come from the style sheet of the page (classes `measured`, `simulated`, `counted`), for light and dark alike.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitslim.report.tables.columns import Source
from vitslim.report.wording import plain

WIDTH, LEFT, ROW, TOP, BOTTOM = 440, 130, 27, 6, 40
"""In drawing units: width of the plot, of its labels, height of a row, and the margins above and below the rows."""
VALUE = 74
"""Width of one column of values on the right."""
LABEL_LETTERS = 16
BAR = 14


@dataclass(frozen=True)
class Mark:
    """One value of a plot."""

    value: float
    text: str
    """The formatted value."""
    hint: str
    """Tooltip: the value with its provenance."""
    spread: float = 0.0
    """Length of the whisker, centered on the value; 0 for none."""


@dataclass(frozen=True)
class Series:
    """One mark per stage; None where a stage has no value."""

    name: str
    marks: tuple[Mark | None, ...]


def bar_plot(title: str, axis: str, labels: Sequence[str], marks: Sequence[Mark | None], source: Source) -> str:
    """Return the SVG of bars that start at zero, for quantities whose ratios matter: sizes and latencies.

    title: for screen readers. axis: label of the axis with its unit.
    """
    series = Series(title, tuple(marks))
    ticks = nice_ticks(0.0, max((m.value + m.spread / 2 for m in marks if m), default=1.0))
    svg, place = _frame(title, axis, labels, [series], ticks)
    for index, mark in enumerate(marks):
        if mark:
            group = child(svg, "g", cls=f"bar {source}")
            child(group, "title", f"{labels[index]}: {mark.hint}")
            length = max(place(mark.value) - LEFT, 1.0)
            child(group, "rect", x=LEFT, y=_middle(index) - BAR / 2, width=length, height=BAR, rx=2)
            _whisker(group, mark, _middle(index), place)
    _values(svg, [series])
    return _text_of(svg)


def dot_plot(title: str, axis: str, labels: Sequence[str], series: Sequence[Series]) -> str:
    """Return the SVG of dots on an axis that may start above zero, for quantities whose differences matter: accuracies.

    title: for screen readers. axis: label of the axis with its unit.
    """
    found = [mark for one in series for mark in one.marks if mark]
    low = min((m.value - m.spread / 2 for m in found), default=0.0)
    high = max((m.value + m.spread / 2 for m in found), default=1.0)
    svg, place = _frame(title, axis, labels, series, nice_ticks(low, high))
    for number, one in enumerate(series):
        group = child(svg, "g", cls=f"dots series-{number % 3}")
        path = [f"{place(m.value):.1f},{_middle(i):.1f}" for i, m in enumerate(one.marks) if m]
        child(group, "polyline", points=" ".join(path))
        for index, mark in enumerate(one.marks):
            if mark:
                dot = child(group, "g")
                child(dot, "title", f"{labels[index]}, {one.name}: {mark.hint}")
                _whisker(dot, mark, _middle(index), place)
                child(dot, "circle", cx=place(mark.value), cy=_middle(index), r=5)
    _values(svg, series)
    return _text_of(svg)


def nice_ticks(low: float, high: float, count: int = 4) -> tuple[float, ...]:
    """Return about `count` + 1 round numbers from at most `low` to at least `high`."""
    span, size = high - low, max(abs(low), abs(high))
    if not math.isfinite(span):
        return (0.0, 1.0)
    if span <= max(1e-9 * size, 1e-12):
        return nice_ticks(low - size / 50, high + size / 50, count) if size > 1e-9 else (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{k * step:.12g}") for k in range(first, last + 1))


def _frame(
    title: str, axis: str, labels: Sequence[str], series: Sequence[Series], ticks: tuple[float, ...]
) -> tuple[ET.Element, Callable[[float], float]]:
    """Return a plot with grid, axis and stage names, and the function from a value to its x coordinate."""
    right = WIDTH - VALUE * len(series) + (0 if len(series) == 1 else 20 * (len(series) - 1))
    bottom = TOP + ROW * len(labels)
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {bottom + BOTTOM}", role="img")
    svg.set("aria-label", plain(_description(title, labels, series)))
    child(svg, "title", title)

    def place(value: float) -> float:
        return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - LEFT)

    for tick in ticks:
        child(svg, "line", cls="grid", x1=place(tick), x2=place(tick), y1=TOP, y2=bottom)
        child(svg, "text", f"{tick:.6g}", cls="tick", x=place(tick), y=bottom + 15)
    child(svg, "text", axis, cls="axis", x=(LEFT + right) / 2, y=bottom + 33)
    for index, label in enumerate(labels):
        short = label if len(label) <= LABEL_LETTERS else label[: LABEL_LETTERS - 1] + "…"
        name = child(svg, "text", short, cls="label", x=LEFT - 10, y=_middle(index) + 4)
        child(name, "title", label)
    return svg, place


def _description(title: str, labels: Sequence[str], series: Sequence[Series]) -> str:
    """Return all values as text for screen readers."""
    parts = []
    for one in series:
        values = [f"{label} {mark.text}" for label, mark in zip(labels, one.marks, strict=True) if mark]
        parts.append(f"{one.name}: {', '.join(values)}" if len(series) > 1 else ", ".join(values))
    return f"{title}. {'; '.join(parts)}"


def _whisker(group: ET.Element, mark: Mark, y: float, place: Callable[[float], float]) -> None:
    if mark.spread > 0:
        left, right = place(mark.value - mark.spread / 2), place(mark.value + mark.spread / 2)
        path = f"M{left:.1f} {y - 4:.1f}V{y + 4:.1f}M{left:.1f} {y:.1f}H{right:.1f}M{right:.1f} {y - 4:.1f}V{y + 4:.1f}"
        child(group, "path", cls="whisker", d=path)


def _values(svg: ET.Element, series: Sequence[Series]) -> None:
    """Add the values on the right, one column per series."""
    for number, one in enumerate(series):
        x = WIDTH - 2 - (VALUE - 20) * (len(series) - 1 - number)
        for index, mark in enumerate(one.marks):
            if mark:
                cls = f"value series-{number % 3}" if len(series) > 1 else "value"
                child(svg, "text", mark.text, cls=cls, x=x, y=_middle(index) + 4)


def _middle(index: int) -> float:
    return TOP + ROW * (index + 0.5)


def child(parent: ET.Element, tag: str, text: str = "", cls: str = "", **attributes: str | float) -> ET.Element:
    """Add an element with text, class and attributes to a parent, and return it."""
    values = {key: f"{value:.1f}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    child = ET.SubElement(parent, tag, {"class": cls, **values} if cls else values)
    child.text = plain(text) or None
    return child


def _text_of(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")
