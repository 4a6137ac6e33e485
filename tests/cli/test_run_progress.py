"""Progress of runs: lines outside of a terminal, events as JSON lines, and scalars for TensorBoard."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vitslim.cli.progress import console_progress, event_file, tensorboard_log
from vitslim.cli.progress.console_progress import ConsoleProgress
from vitslim.cli.progress.event_file import EventFile
from vitslim.cli.progress.run_progress import run_progress
from vitslim.cli.progress.tensorboard_log import TensorBoardLog
from vitslim.errors import InputError, Problem, RecipeError, UsageError
from vitslim.progress import Progress, Silent


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training(progress: Progress) -> None:
    """A training of four steps of eight images, as stages report it."""
    progress.emit("stage_started", {"stage": "01-distill", "kind": "distill", "method": "distill"})
    for step in progress.track(iter(range(4)), "training", total=4, images=8):
        progress.record("training", step + 1, {"loss": 2.0 / (step + 1), "soft": math.inf})
    accuracies = [{"dataset": "val", "metrics": {"top1": 0.5}}]
    progress.emit("stage_ended", {"stage": "01-distill", "accuracies": accuracies})
    progress.warn("batch 1 is slower")


def test_lines_outside_of_a_terminal_have_images_loss_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_progress, "SECONDS_BETWEEN_LINES", 0.0)
    output = io.StringIO()
    training(ConsoleProgress(Console(file=output, width=60)))
    lines = output.getvalue().splitlines()
    assert lines[0] == "  training: 0/4"
    assert lines[2].startswith("  training: 2/4, ") and "images/s, loss 1, about" in lines[2]
    assert lines[4].startswith("  training: 4/4, ") and "loss 0.5" in lines[4] and lines[4].endswith(" s")
    assert lines[5:] == ["· warning: batch 1 is slower"]


def test_bars_on_a_terminal_have_images_loss_and_time() -> None:
    output = io.StringIO()
    training(ConsoleProgress(Console(file=output, force_terminal=True, width=120, color_system=None)))
    assert "training" in output.getvalue() and "warning: batch 1 is slower" in output.getvalue()


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    with run_progress(tmp_path / "events.jsonl", None) as progress:
        training(progress)
        assert written(tmp_path / "events.jsonl")[-1]["event"] == "warning"  # each line is written at once
    events = written(tmp_path / "events.jsonl")
    names = [event["event"] for event in events]
    assert names[0] == "stage_started" and names[-3:] == ["stage_ended", "warning", "ended"]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["seconds_left"]) == (4, 4, 0) and last["images_per_s"] > 0
    metrics = [event for event in events if event["event"] == "metrics"]
    assert [(event["step"], event["values"]) for event in metrics[:2]] == [
        (1, {"loss": 2.0, "soft": None}), (2, {"loss": 1.0, "soft": None})
    ]  # fmt: skip
    assert all(event["stage"] == "01-distill" for event in events[:-2]) and "stage" not in events[-2]
    assert events[-1]["exit_code"] == 0 and "T" in events[-1]["time"]


def test_progress_events_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "SECONDS_BETWEEN_EVENTS", 1e9)
    file = EventFile(Silent(), tmp_path / "events.jsonl")
    assert list(file.track(range(50), "reading")) == list(range(50))
    assert [event["done"] for event in written(tmp_path / "events.jsonl")] == [1, 50]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RecipeError([Problem("data.root", "missing", "set it")]),
         {"exit_code": 2, "problems": [{"where": "data.root", "message": "missing", "hint": "set it"}]}),
        (InputError("no file", "write it"), {"exit_code": 5, "message": "no file", "hint": "write it"}),
        (KeyboardInterrupt(), {"exit_code": 130, "message": "KeyboardInterrupt"}),
        (ValueError("a bug"), {"exit_code": 3, "message": "ValueError: a bug"}),
    ],
)  # fmt: skip
def test_the_last_event_has_the_error(tmp_path: Path, error: BaseException, expected: dict[str, Any]) -> None:
    with pytest.raises(type(error)), run_progress(tmp_path / "events.jsonl", None):
        raise error
    (event,) = written(tmp_path / "events.jsonl")
    assert event["event"] == "ended" and event.items() >= expected.items()


def test_a_refused_recipe_ends_the_events(vitslim: Callable[..., Any], tmp_path: Path) -> None:
    outcome = vitslim("run", "deit-tiny-demo", "--events", tmp_path / "events.jsonl")
    assert outcome.code == 2
    (event,) = written(tmp_path / "events.jsonl")
    assert event["exit_code"] == 2 and event["problems"][0]["where"] == "data.root"
    outcome = vitslim("run", "quickstart", "--events", tmp_path / "nowhere" / "events.jsonl")
    assert outcome.code == 5 and "cannot be written" in outcome.err and "--events" in outcome.err


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(Silent(), tmp_path)
    log.emit("stage_ended", {"stage": "00-dense", "accuracies": []})
    training(log)
    log.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in found.Scalars("01-distill/training/loss")][:2] == [(1, 2.0), (2, 1.0)]
    assert [(one.step, one.value) for one in found.Scalars("val/top1")] == [(1, 0.5)]


def test_tensorboard_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="needs the package") as error:
        TensorBoardLog(Silent(), tmp_path)
    assert "pip install 'vitslim[tensorboard]'" in error.value.hint
