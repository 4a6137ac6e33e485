"""The plot of dimensions before and after pruning."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vitslim.report import render_html
from vitslim.report.pictures.width_plot import width_figures, width_svg
from vitslim.results import BlockWidths, PrunedWidths, Report

WIDTHS = PrunedWidths(
    cost="latency", source="simulated", table="sim:a100, batch 256, float32",
    blocks=(
        BlockWidths(block="all blocks", widths={"embed": (192, 128)}, share_before=0, share_after=0),
        BlockWidths(block="blocks.0", widths={"qk": (64, 16), "mlp": (768, 0)}, share_before=0.5, share_after=0.125),
    ),
)  # fmt: skip


def test_the_plot_shows_both_values_of_every_dimension() -> None:
    svg = ET.fromstring(width_svg(WIDTHS))
    texts = [text for element in svg.iter() if (text := element.text)]
    for expected in ("128 of 192", "16 of 64", "0 of 768", "12.5 of 50.0", "latency, %"):
        assert expected in texts
    assert "blocks.0: qk 16 of 64, mlp 0 of 768, 12.5 of 50.0 % of the latency" in str(svg.get("aria-label"))


def test_bars_are_proportional_to_the_largest_width() -> None:
    svg = ET.fromstring(width_svg(WIDTHS))
    bars = [float(str(rect.get("width"))) for group in svg.iter("{http://www.w3.org/2000/svg}g") for rect in group
            if rect.tag.endswith("rect")]  # fmt: skip
    assert bars == [64.0, 24.0, 0.0, 24.0]


def test_the_page_holds_a_plot_only_for_stages_that_pruned(full_report: Report) -> None:
    assert "Dimensions of the blocks" not in render_html(full_report)
    stage = full_report.stages[1].model_copy(update={"widths": WIDTHS})
    report = full_report.model_copy(update={"stages": (full_report.stages[0], stage, *full_report.stages[2:])})
    (figure,) = width_figures(report)
    assert figure.source == "simulated"
    page = render_html(report)
    assert "Estimated by a simulated latency table: sim:a100, batch 256, float32." in page
    assert "128 of 192" in page
