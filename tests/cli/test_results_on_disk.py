"""`vitslim runs`, `vitslim compare` and `vitslim doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.pipeline.doctor import judge_noise
from vitslim.report import render_json
from vitslim.results import Report


@pytest.fixture
def runs(tmp_path: Path, full_report: Report) -> Path:
    """A folder with a finished run `a` and a run `b` whose accuracy is three points lower."""
    lower = tuple(
        one.model_copy(update={"metrics": one.metrics | {"top1": one.metrics["top1"] - 0.03}})
        for one in full_report.final_accuracies
    )
    for name, report in (("a", full_report), ("b", full_report.model_copy(update={"final_accuracies": lower}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(render_json(report))
        (tmp_path / f"{name}.stages" / "01-prune-abc").mkdir(parents=True)
    return tmp_path


def test_runs_are_listed_shown_and_pruned(vitslim: Callable[..., Any], runs: Path) -> None:
    table = vitslim("runs", "list", runs)
    assert table.code == 0
    assert table.out.count("3.4x faster") == 2
    assert [run["gates"] for run in json.loads(vitslim("runs", "list", runs, "--format", "json").out)] == [4, 4]
    assert "01-prune-abc" in vitslim("runs", "show", runs / "a").out
    assert "would delete 1 stage," in vitslim("runs", "prune", runs / "a", runs / "b", "--dry-run").out
    assert (runs / "a.stages" / "01-prune-abc").exists()
    assert "deleted 1 stage," in vitslim("runs", "prune", runs / "a").out
    assert not (runs / "a.stages" / "01-prune-abc").exists()


def test_a_baseline_gates_a_regression(vitslim: Callable[..., Any], runs: Path) -> None:
    assert vitslim("compare", runs / "a", runs / "b").code == 0
    worse = vitslim("compare", runs / "b", "--baseline", runs / "a" / "report.json")
    assert worse.code == 1
    assert "metrics are worse than the baseline or missing: top-1, val" in worse.err
    assert "-3.0 points" in worse.out
    assert vitslim("compare", runs / "b", "--baseline", runs / "a", "--points", "3").code == 0
    assert vitslim("compare", runs / "a", "--baseline", runs / "b").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("compare", "a"), 2, "give two results"),
        (("compare", "a", "b", "--baseline", "a"), 2, "give two results"),
        (("compare", "a", "none"), 5, "is not a result"),
        (("compare", "a", "none.json"), 5, "cannot be read"),
        (("runs", "list", "none"), 5, "there is no folder"),
        (("runs", "show", "none"), 5, "has no stored stages"),
        (("runs", "prune", "none"), 5, "has no stored stages"),
    ],
)
def test_wrong_arguments_are_refused(
    vitslim: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, code: int, message: str
) -> None:
    monkeypatch.chdir(runs)
    outcome = vitslim(*arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert "hint: " in outcome.err


def test_doctor_checks_every_measured_backend(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim("doctor", "--format", "json")
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert outcome.code == 0
    assert {
        "versions",
        "processor",
        "free disk",
        "onnxruntime:cpu",
        "openvino:cpu",
        "torch:cuda",
        "noise",
    } <= checks.keys()
    assert checks["onnxruntime:cpu"]["status"] == "ok"
    assert all(check["hint"] for check in checks.values() if check["status"] != "ok")


@pytest.mark.parametrize(("value", "status", "words"), [
    (0.01, "ok", ""), (0.08, "warning", "raise `report.seconds`"), (0.4, "warning", "speedups below 1.40x"),
])  # fmt: skip
def test_noise_is_judged(value: float, status: str, words: str) -> None:
    check = judge_noise(value)
    assert check.status == status
    assert words in check.hint
