"""Two processes fill one cache, and one of them is killed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks"


def test_a_killed_process_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of `scripts/bench concurrency`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    concurrency = importlib.import_module("concurrency")
    sources = concurrency.shared_recipes(tmp_path)
    found = concurrency.one_round(tmp_path / "cache", sources, seed=0)
    assert found["entries"] == concurrency.ENTRIES
    assert {key: found[key] for key in ("failed", "lost", "damaged", "repeated", "left_over")} == dict.fromkeys(
        ("failed", "lost", "damaged", "repeated", "left_over"), 0
    )
