"""The share of a training that waits for images is measured, and a large one gives a warning."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
import torch

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.train import Train
from vitslim.training import Batch, hard_loss, train, waiting
from vitslim.training.waiting import ImageWaits


class Kept(Silent):
    """Keeps warnings and values."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.values: list[tuple[int, Mapping[str, float]]] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def record(self, label: str, step: int, values: Mapping[str, float]) -> None:
        self.values.append((step, values))


def test_waiting_does_not_count_the_time_of_the_loop() -> None:
    def slow() -> Iterator[int]:
        for number in range(2):
            time.sleep(0.05)
            yield number

    waits = ImageWaits()
    for _ in waits.over(slow()):
        assert 0.05 <= waits.last_s < 0.5
        time.sleep(0.6)


def test_a_training_that_waits_is_warned_about(
    tiny_graph: ModelGraph, some_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SECONDS_MIN", 0.0)

    def objective(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": hard_loss(logits, batch.labels)}

    found = []
    for limit in (0.0, 1.0):
        monkeypatch.setattr(waiting, "STALL_MAX", limit)
        progress = Kept()
        metrics = train(tiny_graph.module, some_digits, objective, Train(epochs=4, batch=40), 0, {}, progress)
        found.append(progress.warnings)
        assert 0 < metrics["stall_share"] < 1 and "wait_seconds" not in metrics
        assert [step for step, _ in progress.values] == [10, 16] and progress.values[-1][1].keys() == {"loss"}
    assert "waiting for images" in found[0][0] and found[1] == []
