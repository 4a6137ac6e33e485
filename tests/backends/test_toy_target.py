"""A simulated target that is registered as the two tables of `SIMULATORS` and `SIMULATED_TARGETS` require."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitslim
from vitslim.backends.gemm_list import Gemm
from vitslim.backends.registry import SIMULATORS, Simulated, parse_backend
from vitslim.backends.simulated.settings import Settings, validated
from vitslim.backends.simulated.simulator import Floats, Ints, Simulator
from vitslim.errors import UsageError
from vitslim.latency_grid import Shape
from vitslim.pipeline.bench.gemms import bench_gemms
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.backend_names import SIMULATED_TARGETS
from vitslim.recipe.schema import ReportConfig
from vitslim.results import Estimate
from vitslim.workload import Workload


class ToySpec(Settings):
    """Settings of the toy target."""

    macs_per_us: int


@dataclass(frozen=True)
class ToySimulator:
    """Every MAC takes the same time, and nothing else takes any."""

    name: str
    spec: ToySpec
    two_four_note: str = "simulated: computes layers with 2:4 weights as dense ones"

    def estimate(self, workload: Workload) -> Estimate:
        latency_ms = workload.macs / self.spec.macs_per_us / 1e3
        return Estimate(backend=self.name, batch=workload.batch, latency_ms=latency_ms, calibration="uncalibrated")

    def matmul_ms(self, sizes: Ints) -> Floats:
        return np.asarray(sizes.prod(axis=1) / self.spec.macs_per_us / 1e3, np.float64)

    def gemm_us(self, gemms: Sequence[Gemm]) -> Floats:
        return np.array([g.count * g.m * g.n * g.k / self.spec.macs_per_us for g in gemms])

    def gemm_provenance(self, gemms: Sequence[Gemm]) -> list[tuple[str, str]]:
        return [("uncalibrated", "unknown")] * len(gemms)

    def roofline_us(self, gemms: Sequence[Gemm]) -> None:
        return None


def load_simulator(target: str, name: str, changes: Mapping[str, Any], path: Path | None) -> Simulator:
    packaged = {"macs_per_us": 1000}
    return ToySimulator(name, validated(ToySpec, packaged | changes, packaged, f"sim: {target}"))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines that a contributor adds: one in `backends/registry.py`, one in `recipe/backend_names.py`."""
    monkeypatch.setitem(SIMULATORS, "toy", load_simulator)
    monkeypatch.setitem(SIMULATED_TARGETS, "toy", "toy")


def test_the_target_is_found_by_name_and_takes_settings(small_model: Path) -> None:
    slow, fast = parse_backend("sim:toy"), parse_backend({"sim": "toy", "macs_per_us": 2000})
    assert isinstance(slow, Simulated)
    assert isinstance(fast, Simulated)
    assert slow.estimate(small_model, 2).latency_ms == 2 * fast.estimate(small_model, 2).latency_ms
    assert fast.name == "sim:toy(macs_per_us=2000)"
    with pytest.raises(UsageError) as caught:
        parse_backend({"sim": "toy", "macs": 1})
    assert caught.value.hint == "did you mean 'macs_per_us'?"


def test_bench_reports_an_estimate_of_the_target(small_model: Path, large_model: Path) -> None:
    config = ReportConfig(backends=("sim:toy",), batches=(1, 4))
    result = vitslim.bench([large_model, small_model], config)
    estimates = result.rows[1].estimates
    assert [(e.backend, e.batch) for e in estimates] == [("sim:toy", 1), ("sim:toy", 4)]
    assert all(e.speedup is not None and e.speedup > 1 for e in estimates)


def test_gemms_and_latency_tables_use_the_target(small_model: Path) -> None:
    backend = parse_backend("sim:toy")
    assert isinstance(backend, Simulated)
    (row,) = bench_gemms([Gemm(10, 10, 10, measured_us=2.0)], backend).rows
    assert (row.predicted_us, row.calibration) == (1.0, "uncalibrated")
    shape: Shape = (1, 10, 10, 10)
    assert backend.matmul_times([shape], small_model, 3, "float32").ms == {shape: 3e-3}


def test_a_recipe_can_name_the_target(tmp_path: Path) -> None:
    document = {
        "name": "toy",
        "model": {"timm": "vit_tiny_patch16_224"},
        "data": {"kind": "digits"},
        "stages": ["export"],
        "report": {"backends": ["sim:toy"]},
    }
    assert vitslim.build_plan(validate(document, "test"), trace=False).rows


def test_a_recipe_reports_the_target(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    document = {
        "name": "toy-target",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [{"prune": {"method": "depgraph"}}, "export"],
        "report": {"backends": ["sim:toy"], "batches": [1]},
    }  # fmt: skip
    report = run_recipe(validate(document), tmp_path / "out").report
    dense, *others = (stage.estimates[0] for stage in report.stages)
    assert dense.backend == "sim:toy"
    assert all(other.latency_ms < dense.latency_ms for other in others)
