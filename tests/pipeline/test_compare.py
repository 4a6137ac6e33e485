"""Comparison of two results: metrics, changes, and regressions against a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vitslim.errors import InputError
from vitslim.pipeline.compare import Difference, compare
from vitslim.report import render_json
from vitslim.results import Report


def changed(report: Report, **final: Any) -> Report:
    """The report with other values of its final stage."""
    stage = report.stages[-1].model_copy(update=final)
    return report.model_copy(update={"stages": (*report.stages[:-1], stage), "final_accuracies": stage.accuracies})


def written(folder: Path, name: str, report: Report) -> Path:
    path = folder / f"{name}.json"
    path.write_text(render_json(report))
    return path


def by_name(found: tuple[Difference, ...]) -> dict[str, Difference]:
    return {one.metric: one for one in found}


def test_equal_results_have_no_regression(tmp_path: Path, full_report: Report) -> None:
    path = written(tmp_path, "a", full_report)
    found = compare(path, path)
    assert {one.change for one in found} == {0.0}
    assert not any(one.is_regression(0, 0) for one in found)
    assert {"top-1, val", "ONNX file", "MACs", "latency, onnxruntime:cpu, batch 1, 1 thread"} <= by_name(found).keys()


@pytest.mark.parametrize(
    ("factor", "regresses"), [(0.94, True), (0.96, False), (1.5, False)], ids=["slower", "within 5 %", "faster"]
)
def test_a_lower_speedup_is_a_regression(tmp_path: Path, full_report: Report, factor: float, regresses: bool) -> None:
    slower = tuple(
        one.model_copy(update={"speedup": one.speedup and factor * one.speedup})
        for one in full_report.stages[-1].measurements
    )
    paths = [written(tmp_path, name, one) for name, one in
             (("a", full_report), ("b", changed(full_report, measurements=slower)))]  # fmt: skip
    found = by_name(compare(*paths))["speedup over dense, onnxruntime:cpu, batch 1, 1 thread"]
    assert found.change == pytest.approx(factor - 1)
    assert found.is_regression(1, 5) == regresses


def test_milliseconds_of_another_machine_are_shown_and_not_judged(tmp_path: Path, full_report: Report) -> None:
    slower = tuple(
        one.model_copy(update={"median_ms": 3 * one.median_ms}) for one in full_report.stages[-1].measurements
    )
    paths = [written(tmp_path, name, one) for name, one in
             (("a", full_report), ("b", changed(full_report, measurements=slower)))]  # fmt: skip
    found = compare(*paths)
    assert by_name(found)["latency, onnxruntime:cpu, batch 1, 1 thread"].change == pytest.approx(2)
    assert not any(one.is_regression(0, 0) for one in found)


def test_accuracy_is_judged_in_points_and_missing_metrics_are_regressions(tmp_path: Path, full_report: Report) -> None:
    final = full_report.stages[-1]
    metrics = final.accuracies[0].metrics
    lower = (final.accuracies[0].model_copy(update={"metrics": metrics | {"top1": metrics["top1"] - 0.015}}),)
    paths = [written(tmp_path, name, one) for name, one in
             (("a", full_report), ("b", changed(full_report, accuracies=lower)))]  # fmt: skip
    found = by_name(compare(*paths))
    assert found["top-1, val"].change == pytest.approx(-0.015)
    assert found["top-1, val"].is_regression(1, 50)
    assert not found["top-1, val"].is_regression(1.5, 0)
    other = f"top-1, {final.accuracies[1].dataset}"
    assert found[other].result is None
    assert found[other].is_regression(100, 100)
    assert not by_name(compare(*reversed(paths)))[other].is_regression(0, 0)


def test_onnx_files_are_compared_by_size_and_macs(tmp_path: Path) -> None:
    paths = []
    for width in (8, 4):
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = onnx.numpy_helper.from_array(np.ones((16, width), np.float32), "w")
        ports = [
            onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", (1, 16)), ("y", (1, width)))
        ]
        graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
        paths.append(tmp_path / f"{width}.onnx")
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), paths[-1])
    found = by_name(compare(*paths))
    assert found["MACs of the file"].change == pytest.approx(-0.5)
    assert found["ONNX file"].change == pytest.approx(paths[1].stat().st_size / paths[0].stat().st_size - 1)


@pytest.mark.parametrize("name", ["model.txt", "none.json", "empty"])
def test_other_paths_are_refused(tmp_path: Path, full_report: Report, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        compare(written(tmp_path, "a", full_report), tmp_path / name)
    assert caught.value.hint
