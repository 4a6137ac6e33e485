"""Plot of the dimensions of every block before and after pruning, with the share of the cost of each block."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from vitslim.report.pictures.figures import Figure
from vitslim.report.pictures.plots import child
from vitslim.results import BlockWidths, PrunedWidths, Report

COLUMN, GAP, LEFT, ROW, TOP = 96, 14, 84, 24, 26
"""In drawing units: width of a column of bars, gap between columns, width of labels, height of a row, top margin."""
BAR = 9
NOTE = "Filled: after pruning, outlined: before. The last column is the share of the dense model's {cost}."


def width_figures(report: Report) -> Iterator[Figure]:
    """Yield the plot of each stage that pruned dimensions of blocks."""
    for stage in report.stages:
        if stage.widths is not None:
            source = stage.widths.source
            note = NOTE.format(cost=stage.widths.cost)
            if stage.widths.table:
                note += f" Estimated by a {source} latency table: {stage.widths.table}."
            yield Figure(f"Dimensions after {stage.name}", source, note, width_svg(stage.widths))


def width_svg(found: PrunedWidths) -> str:
    """Return the SVG: a row for each block, a column for each kind of axis, and one for the share of the cost."""
    kinds = list(dict.fromkeys(kind for block in found.blocks for kind in block.widths))
    most = {kind: max(block.widths[kind][0] for block in found.blocks if kind in block.widths) for kind in kinds}
    columns = len(kinds) + 1
    width, height = LEFT + columns * (COLUMN + GAP), TOP + ROW * len(found.blocks) + 6
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img")
    svg.set("aria-label", _description(found))
    for column, name in enumerate([*kinds, f"{found.cost}, %"]):
        child(svg, "text", name, cls="tick", x=_x(column) + COLUMN / 2, y=TOP - 10)
    largest = max((block.share_before for block in found.blocks), default=1.0) or 1.0
    for row, block in enumerate(found.blocks):
        y = TOP + ROW * row
        child(svg, "text", block.block, cls="label", x=LEFT - 8, y=y + 12)
        for column, kind in enumerate(kinds):
            if kind in block.widths:
                before, after = block.widths[kind]
                _pair(svg, _x(column), y, before / most[kind], after / most[kind], f"{after} of {before}", "counted")
        if block.share_before or block.share_after:
            shares = f"{100 * block.share_after:.1f} of {100 * block.share_before:.1f}"
            _pair(svg, _x(len(kinds)), y, block.share_before / largest, block.share_after / largest, shares,
                  found.source)  # fmt: skip
    return ET.tostring(svg, encoding="unicode")


def _x(column: int) -> float:
    return float(LEFT + column * (COLUMN + GAP))


def _pair(svg: ET.Element, x: float, y: float, before: float, after: float, text: str, source: str) -> None:
    """Add a bar for the value after pruning inside the outline of the value before, with both values below."""
    child(svg, "rect", cls="outline", x=x, y=y, width=max(1.0, COLUMN * before), height=BAR)
    group = child(svg, "g", cls=f"bar {source}")
    child(group, "title", text)
    child(group, "rect", x=x, y=y, width=COLUMN * after, height=BAR)
    child(svg, "text", text, cls="small", x=x, y=y + BAR + 9)


def _description(found: PrunedWidths) -> str:
    """Return all values as text for screen readers."""
    parts = []
    for block in found.blocks:
        widths = ", ".join(f"{kind} {after} of {before}" for kind, (before, after) in block.widths.items())
        parts.append(f"{block.block}: {widths}{_share(block, found.cost)}")
    return f"Dimensions before and after pruning. {'; '.join(parts)}"


def _share(block: BlockWidths, cost: str) -> str:
    if not block.share_before:
        return ""
    return f", {100 * block.share_after:.1f} of {100 * block.share_before:.1f} % of the {cost}"
