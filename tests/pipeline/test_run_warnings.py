"""Warnings about stages that increase latency."""

from __future__ import annotations

import pytest

from vitslim.pipeline.run.messages.run_warnings import latency_regressions, noisy_speedups
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages import DepGraph, Etps, Export
from vitslim.results import Cost, Measurement, StageRecord


def record(name: str, *ms: float) -> StageRecord:
    rows = [
        Measurement(backend="onnxruntime:cpu", batch=batch, threads=1, median_ms=value, spread_ms=0.1, n=50)
        for batch, value in zip((1, 8), ms, strict=True)
    ]
    nothing = Cost(params=1, macs=1, bops=1, weight_bytes=1, device_bytes=1)
    return StageRecord(
        name=name, kind="", method="", seconds=0, key="", cost=nothing, onnx_bytes=1, measurements=tuple(rows)
    )


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (Etps(method="etps"), "squeezing tokens costs more than it saves; squeeze fewer blocks"),
        (DepGraph(method="depgraph"), ""),
    ],
)
def test_a_stage_that_is_slower_at_batch_1_gives_a_warning(config: StageConfig, advice: str) -> None:
    records = [record("00-dense", 5.0, 40.0), record("01-stage", 5.5, 30.0), record("02-export", 5.6, 30.1)]
    (warning,) = latency_regressions(records, (config, Export(method="onnx")))
    assert warning.startswith("01-stage is slower than 00-dense on onnxruntime:cpu at batch 1, 1 threads: 5.5 ms")
    assert advice in warning
    assert warning.endswith("5 ms") == (not advice)


def test_differences_within_the_spread_give_no_warning() -> None:
    records = [record("00-dense", 5.0, 40.0), record("01-squeeze", 5.15, 40.0)]
    assert latency_regressions(records, (Etps(method="etps"),)) == ()


@pytest.mark.parametrize(
    ("interval", "noisy"),
    [((0.9, 1.12), True), ((0.98, 1.03), False), ((1.02, 1.4), False), (None, False)],
    ids=["wide", "narrow", "faster", "no interval"],
)
def test_a_wide_interval_that_contains_1_gives_a_warning(interval: tuple[float, float] | None, noisy: bool) -> None:
    final = record("02-export", 5.0, 40.0)
    first = final.measurements[0].model_copy(update={"speedup": 1.01, "speedup_interval": interval})
    warnings = noisy_speedups(final.model_copy(update={"measurements": (first, final.measurements[1])}))
    assert len(warnings) == noisy
    assert all("too noisy to tell whether 02-export is faster on onnxruntime:cpu" in warning for warning in warnings)
