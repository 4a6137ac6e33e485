"""Bar plot of learned bits as inline SVG: a row for each layer, with bars for its weight and its activation."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from vitslim.report.pictures.figures import Figure
from vitslim.report.pictures.plots import child
from vitslim.report.wording import plain
from vitslim.results import Report, TensorBits

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 440, 190, 30, 18, 6, 40
BAR = 7
OPERANDS = ("weight", "activation")
"""In the order of their colors and bars."""


def bits_figures(report: Report) -> tuple[Figure, ...]:
    """Return a plot of the learned bits of each stage that learned some."""
    return tuple(
        Figure(
            f"Learned bits: {stage.name}",
            "counted",
            f"Bits of the integers of each tensor. Files store weights in 4 or 8 bits and activations in 8 bits; "
            f"{_narrow(stage.bits)} of {_activations(stage.bits)} activations have fewer than 8 bits, for which ONNX "
            "Runtime has no integer kernel. Hover over a bar to see the bits before rounding.",
            bits_plot(f"Learned bits of {stage.name}", stage.bits),
            OPERANDS,
        )
        for stage in report.stages
        if stage.bits
    )


def bits_plot(title: str, bits: Iterable[TensorBits]) -> str:
    """Return the SVG of the bits of each layer, in the given order."""
    rows: dict[str, dict[str, TensorBits]] = {}
    for one in bits:
        rows.setdefault(one.layer, {})[one.operand] = one
    most = max((one.bits for row in rows.values() for one in row.values()), default=8)
    bottom = TOP + ROW * len(rows)
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {bottom + BOTTOM}", role="img")
    svg.set("aria-label", plain(_description(title, rows)))
    child(svg, "title", title)
    scale = (WIDTH - LEFT - RIGHT) / most
    for tick in range(0, most + 1, 2):
        x = LEFT + tick * scale
        child(svg, "line", cls="grid", x1=x, x2=x, y1=TOP, y2=bottom)
        child(svg, "text", str(tick), cls="tick", x=x, y=bottom + 15)
    child(svg, "text", "bits", cls="axis", x=LEFT + most * scale / 2, y=bottom + 33)
    for number, (layer, row) in enumerate(rows.items()):
        child(svg, "text", layer, cls="label", x=LEFT - 10, y=TOP + ROW * (number + 0.5) + 4)
        for place, operand in enumerate(OPERANDS):
            if operand in row:
                _bar(svg, row[operand], place, TOP + ROW * number + 2 + place * BAR, scale)
    return ET.tostring(svg, encoding="unicode")


def _bar(svg: ET.Element, one: TensorBits, series: int, y: float, scale: float) -> None:
    group = child(svg, "g", cls=f"bits series-{series}")
    hint = f"{one.layer}: {one.bits}-bit {one.operand}, learned {one.learned:.2f}, stored in {one.container} bits"
    child(group, "title", hint)
    child(group, "rect", x=float(LEFT), y=float(y), width=one.bits * scale, height=float(BAR - 1), rx=1)


def _description(title: str, rows: dict[str, dict[str, TensorBits]]) -> str:
    """Return all values as text for screen readers."""
    parts = [f"{layer} {', '.join(f'{one.bits} ({o})' for o, one in row.items())}" for layer, row in rows.items()]
    return f"{title}. {'; '.join(parts)}"


def _activations(bits: Iterable[TensorBits]) -> int:
    return sum(one.operand == "activation" for one in bits)


def _narrow(bits: Iterable[TensorBits]) -> int:
    return sum(one.operand == "activation" and one.bits < one.container for one in bits)
