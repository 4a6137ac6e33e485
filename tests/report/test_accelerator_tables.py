"""Tables of accelerators that change results: escaped, and with one source for each column."""

from __future__ import annotations

from vitslim.report import render_html
from vitslim.report.accelerator_tables import accelerator_tables, accuracy_groups, sensitivity_groups
from vitslim.report.sections import sections
from vitslim.results import (
    AcceleratorResult,
    ApproximateAccuracy,
    Distribution,
    Estimate,
    Report,
    Sensitivity,
)
from vitslim.results.accelerator_result import LayerWork

HOSTILE = "<b>x</b>"


def distribution(name: str, values: list[int]) -> Distribution:
    low, high = min(values), max(values)
    mean = sum(values) / len(values)
    return Distribution(name=name, mean=mean, minimum=low, p10=low, median=mean, p90=high, maximum=high)


def with_accelerator(report: Report) -> Report:
    """The report with one accelerator in its last stage, whose layer has a hostile name."""
    counts = (distribution("keys", [2, 4]), distribution("rows", [3, 3]))
    result = AcceleratorResult(
        backend="sim:fact",
        accuracies=(ApproximateAccuracy(dataset="val", n=2, top1=0.5, exact_top1=1.0, agreement=0.5),),
        distributions=(distribution("cycles", [10, 30]),),
        layers=(LayerWork(layer=HOSTILE, counts=counts),),
    )
    row = Sensitivity(key="mult", value="512", low=128, high=512, latency_low_ms=4, latency_high_ms=1,
                      energy_low_mj=2, energy_high_mj=2)  # fmt: skip
    estimate = Estimate(backend="sim:fact", batch=1, latency_ms=1, sensitivity=(row,))
    last = report.stages[-1].model_copy(update={"accelerators": (result,), "estimates": (estimate,)})
    return report.model_copy(update={"stages": (*report.stages[:-1], last)})


def test_exact_and_approximate_accuracy_have_columns_of_their_own(full_report: Report) -> None:
    (group,) = accuracy_groups(with_accelerator(full_report))
    columns = {column.header: (column.source, column.cells[0].text) for column in group.columns}
    assert columns["top-1 without approximations"] == ("measured", "100.0 %")
    assert columns["top-1"] == ("simulated", "50.0 %")
    assert columns["points"] == ("simulated", "-50.0")
    assert accuracy_groups(full_report) == ()


def test_counts_show_their_range_only_where_images_differ(full_report: Report) -> None:
    (tables,) = accelerator_tables(with_accelerator(full_report))
    assert [column.cells[0].text for column in tables.layers[0].columns] == [HOSTILE, "3 (2 to 4)", "3"]
    assert tables.pictures is None
    assert tables.sensitivity[0].columns[2].cells[0].text == "128 to 512"
    assert sensitivity_groups(Estimate(backend="x", batch=1, latency_ms=1)) == ()


def test_the_page_is_escaped_and_the_summary_names_the_accelerator(full_report: Report) -> None:
    page = render_html(with_accelerator(full_report))
    assert HOSTILE not in page
    assert "&lt;b&gt;x" in page
    titles = {section.title: section for section in sections(with_accelerator(full_report))}
    (entry,) = titles["Accuracy on simulated accelerators"].entries
    assert "05-export on sim:fact, simulated: val: top-1 50.0 %, -50.0 points" in entry.text
    assert "Accuracy on simulated accelerators" not in {section.title for section in sections(full_report)}
