"""Roofline plot as inline SVG: operations per byte of DRAM traffic and operations per second, both logarithmic."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from vitslim.report.pictures.plots import child
from vitslim.results import Estimate, EstimateRow
from vitslim.units import FLOPS_PER_MAC

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 260, 52, 14, 10, 40
DOT = 4


@dataclass(frozen=True)
class Dot:
    """One row on the roofline."""

    intensity: float
    """Operations per byte of DRAM traffic."""
    tops: float
    """Achieved 10^12 operations per second."""
    row: EstimateRow


@dataclass(frozen=True)
class _Scale:
    """A logarithmic axis from `low` to `high` (powers of ten) on pixels from `start` to `end`."""

    low: int
    high: int
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> range:
        return range(self.low, self.high + 1)


def dots(found: Estimate) -> tuple[Dot, ...]:
    """Return the dots of the rows that have MACs, DRAM traffic and a latency."""
    return tuple(
        Dot(FLOPS_PER_MAC * row.macs / row.dram_bytes, FLOPS_PER_MAC * row.macs / (row.latency_us * 1e6), row)
        for row in found.rows
        if row.macs and row.dram_bytes and row.latency_us
    )


def roofline_plot(found: Estimate, title: str) -> str:
    """Return the SVG of a roofline: memory and compute ceilings, and a dot per GEMM; empty without a roofline."""
    if found.roofline is None:
        return ""
    peak, bandwidth = found.roofline.peak_tops, found.roofline.bandwidth_gbps / 1e3
    shown = dots(found)
    ridge = peak / bandwidth
    across = _axis([dot.intensity for dot in shown] + [ridge / 10, ridge * 10], LEFT, WIDTH - RIGHT)
    up = _axis([dot.tops for dot in shown] + [peak, peak / 100], HEIGHT - BOTTOM, TOP)
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    svg.set("aria-label", title)
    child(svg, "title", title)
    _grid(svg, across, up)
    start = 10.0**across.low
    corner = (across.place(ridge), up.place(peak))
    foot = max(start * bandwidth, 10.0**up.low)
    path = f"M{across.place(foot / bandwidth):.1f} {up.place(foot):.1f}L{corner[0]:.1f} {corner[1]:.1f}H{WIDTH - RIGHT}"
    child(svg, "path", cls="whisker", d=path)
    for dot in shown:
        group = child(svg, "g", cls="dots series-0")
        child(group, "title", f"{dot.row.name}: {dot.tops:.3g} TOPS at {dot.intensity:.3g} operations per byte, "
                              f"{dot.row.bound} bound, {dot.row.calibration}")  # fmt: skip
        child(group, "circle", cx=across.place(dot.intensity), cy=up.place(dot.tops), r=DOT)
    return ET.tostring(svg, encoding="unicode")


def _axis(values: list[float], start: float, end: float) -> _Scale:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return _Scale(low, max(high, low + 1), start, end)


def _grid(svg: ET.Element, across: _Scale, up: _Scale) -> None:
    for power in across.ticks():
        x = across.place(10.0**power)
        child(svg, "line", cls="grid", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM)
        child(svg, "text", f"{10.0**power:g}", cls="tick", x=x, y=HEIGHT - BOTTOM + 15)
    for power in up.ticks():
        y = up.place(10.0**power)
        child(svg, "line", cls="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
        child(svg, "text", f"{10.0**power:g}", cls="label", x=LEFT - 6, y=y + 4)
    child(
        svg, "text", "x: operations per byte of DRAM traffic; y: TOPS", cls="axis", x=(LEFT + WIDTH) / 2, y=HEIGHT - 7
    )
