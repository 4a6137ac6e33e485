"""Runs on disk: their list, their stored stages, and the deletion of stages that no result uses. Made-up files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitslim.errors import InputError, UsageError
from vitslim.files import exclusive
from vitslim.pipeline.run_folders import list_runs, prune_run, stage_folders
from vitslim.report import render_json
from vitslim.results import Report, StageRecord


@pytest.fixture
def run(tmp_path: Path, full_report: Report) -> Path:
    """A finished run with an old stage and the checkpoints of an interrupted one, beside an unfinished run."""
    stages = tuple(stage.model_copy(update={"key": f"{i:012x}"}) for i, stage in enumerate(full_report.stages))
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "report.json").write_text(render_json(full_report.model_copy(update={"stages": stages})))
    for stage in stages:
        store(tmp_path / "demo.stages", stage)
    store(tmp_path / "demo.stages", stages[1].model_copy(update={"key": "f" * 12}))
    kept = tmp_path / "demo.stages" / f".03-distill-{'e' * 12}.kept"
    kept.mkdir()
    (kept / "step.safetensors").write_bytes(b"0" * 500)
    store(tmp_path / "other.stages", stages[0])
    return folder


def store(folder: Path, stage: StageRecord) -> None:
    path = folder / f"{stage.name}-{stage.key}"
    path.mkdir(parents=True)
    (path / "record.json").write_text(stage.model_dump_json())
    (path / "weights.safetensors").write_bytes(b"0" * 1000)


def test_the_list_has_finished_runs_first(run: Path) -> None:
    finished, unfinished = list_runs(run.parent)
    assert (finished.folder, finished.name, finished.gates, finished.gates_passed) == (str(run), "deit-tiny-demo", 4, 3)
    assert finished.headline.startswith("3.4x faster, 6.7x smaller")
    assert finished.stages_bytes > 7 * 1000 + 500
    assert (Path(unfinished.folder).name, unfinished.created, unfinished.result_bytes) == ("other", "", 0)


def test_stages_that_no_result_uses_are_deleted(run: Path) -> None:
    stages = stage_folders(run)
    unused = {f".03-distill-{'e' * 12}.kept", f"01-prune-{'f' * 12}"}
    assert {stage.folder for stage in stages if not stage.used} == unused
    assert len(prune_run(run, everything=False, dry_run=True)) == 2
    assert stage_folders(run) == stages
    assert {stage.folder for stage in prune_run(run, everything=False, dry_run=False)} == unused
    assert [stage.used for stage in stage_folders(run)] == [True] * 6


def test_stages_of_a_snapshot_and_of_an_unfinished_run_stay(run: Path) -> None:
    snapshot = run.with_name("demo-half")
    snapshot.mkdir()
    report = json.loads((run / "report.json").read_text())
    report["stages"][1]["key"] = "f" * 12
    (snapshot / "report.json").write_text(json.dumps(report))
    assert {stage.folder for stage in prune_run(run, everything=False, dry_run=False)} == {
        f".03-distill-{'e' * 12}.kept"
    }
    assert prune_run(run.with_name("other"), everything=False, dry_run=False) == ()
    assert len(prune_run(run.with_name("other"), everything=True, dry_run=False)) == 1


def test_stages_of_a_running_run_are_not_deleted(run: Path) -> None:
    with exclusive(run.with_name("demo.stages")), pytest.raises(UsageError, match="another run is writing"):
        prune_run(run, everything=True, dry_run=False)
    assert len(stage_folders(run)) == 8


@pytest.mark.parametrize("call", [list_runs, stage_folders])
def test_missing_folders_are_refused(call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        call(tmp_path / "none")
    assert caught.value.hint


def test_damaged_reports_and_records_are_refused(run: Path) -> None:
    (run.with_name("demo.stages") / f"01-prune-{'f' * 12}" / "record.json").write_text("{")
    with pytest.raises(InputError, match="is corrupt"):
        stage_folders(run)
    (run / "report.json").write_text("[]")
    with pytest.raises(InputError):
        list_runs(run.parent)
