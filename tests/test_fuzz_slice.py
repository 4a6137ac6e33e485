"""A short slice of `scripts/fuzz`: changed files are read or refused, without any other exception."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FUZZING = Path(__file__).resolve().parents[1] / "scripts" / "fuzzing"
COUNTS = {
    "recipe": 3,
    "yaml": 10,
    "zip": 30,
    "onnx": 40,
    "checkpoint": 40,
    "training": 40,
    "report": 10,
    "table": 30,
    "shard": 40,
    "graph": 4,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COUNTS)
def test_changed_files_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FUZZING)
    targets = importlib.import_module("targets")
    target = targets.TARGETS[name](tmp_path)
    assert targets.check_batch(target, 7, COUNTS[name]) == COUNTS[name]
