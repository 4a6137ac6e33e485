"""Reports of feature extractors, backbones and multi-label models: the columns, the headline and the gates."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vitslim.report import parse_report, render_html, render_json, render_markdown, render_terminal
from vitslim.report.tables.columns import accuracy_group
from vitslim.report.tables.headline import accuracy_fact
from vitslim.results import Accuracy, GateResult, Report
from vitslim.tasks import Task

METRICS: dict[str, list[dict[str, float]]] = {
    "features": [{"knn_top1": 0.8}, {"cosine": 0.98765, "neighbor_agreement": 0.956, "knn_top1": 0.79}],
    "maps": [{}, {"cosine": 0.991, "sqnr_db.features_0": 31.25, "sqnr_db.features_1": 24.0}],
    "multilabel": [{"map": 0.5}, {"map": 0.48, "label_agreement": 0.91}],
}
COLUMNS = {
    "features": [("cosine", ["", "0.9877"]), ("neighbors", ["", "95.6 %"]), ("k-NN top-1", ["80.0 %", "79.0 %"]),
                 ("points", ["", "-1.0"])],
    "maps": [("cosine", ["", "0.9910"]), ("SQNR features_0", ["", "31.2 dB"]), ("SQNR features_1", ["", "24.0 dB"])],
    "multilabel": [("mAP", ["50.0 %", "48.0 %"]), ("points", ["", "-2.0"]), ("agreement", ["", "91.0 %"])],
}  # fmt: skip
FACTS = {"features": "0.9877 cosine similarity", "maps": "0.9910 cosine similarity", "multilabel": "-2.0 points mAP"}
TASKS: dict[str, Task] = {"features": "features", "maps": "features", "multilabel": "multilabel"}


@pytest.fixture(params=list(METRICS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(bare_report: Report, kind: str) -> Report:
    stages = tuple(
        stage.model_copy(update={"accuracies": (Accuracy(dataset="val", n=100, metrics=metrics),)})
        for stage, metrics in zip(bare_report.stages, METRICS[kind], strict=True)
    )
    gates = (GateResult(name="cosine_min", limit=0.99, value=0.98765, passed=False),
             GateResult(name="neighbor_agreement_min", limit=95, value=95.6, passed=True))  # fmt: skip
    changes = {"stages": stages, "final_accuracies": stages[-1].accuracies, "gates": gates, "task": TASKS[kind]}
    return bare_report.model_copy(update=changes)


def test_the_columns_are_the_metrics_of_the_task(report: Report, kind: str) -> None:
    columns = accuracy_group(report, "val").columns
    assert [(column.header, [cell.text for cell in column.cells]) for column in columns] == COLUMNS[kind]


def test_every_renderer_shows_the_metrics(report: Report, kind: str) -> None:
    buffer = io.StringIO()
    render_terminal(report, Console(file=buffer, width=200))
    texts = [buffer.getvalue(), render_markdown(report).replace("\\_", "_"), render_html(report)]
    for header, cells in COLUMNS[kind]:
        for text in texts:
            assert header in text
            assert cells[-1].replace("-", "") in text
    for text in texts:
        assert "top-1 class" not in text
        assert "95.00 %" in text
    assert parse_report(render_json(report)) == report
    assert json.loads(render_json(report))["stages"][1]["accuracies"][0]["metrics"] == METRICS[kind][1]


def test_the_headline_has_the_first_metric(report: Report, kind: str) -> None:
    assert str(accuracy_fact(report)) == FACTS[kind]
