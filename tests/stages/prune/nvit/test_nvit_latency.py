"""Latency budgets of NViT: the correction by measurement, and tables that lack a dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.latency_grid import LatencyGrid, MatmulLatencies
from vitslim.recipe.stages import Budget, Groups, Nvit
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.results import Measurement
from vitslim.stages.contract import Deployment, StageContext
from vitslim.stages.prune.nvit.measured_target import corrected_limit
from vitslim.stages.prune.nvit.stage import NvitStage


def config_of(**keys: Any) -> Nvit:
    return Nvit(
        method="nvit", budget=Budget(latency=0.6, table="t.json"), interval=2, update_weights=False, teacher="none",
        loss=Loss(hard=1, soft=0), train=Train(epochs=3, batch=16, images=160), **keys,
    )  # fmt: skip


class SlowDevice:
    """A device on which a pruned model is slower than its MACs say: share = 0.1 + 0.9 * share of MACs."""

    def __init__(self, dense: ModelGraph) -> None:
        self.macs = sketch(dense).cost().macs
        self.graphs: dict[Path, ModelGraph] = {}
        self.shares: list[float] = []

    def write(self, graph: ModelGraph, path: Path) -> None:
        self.graphs[path] = graph

    def latency(self, files: Mapping[str, Path]) -> dict[str, Measurement]:
        shares = {name: 0.1 + 0.9 * sketch(self.graphs[path]).cost().macs / self.macs for name, path in files.items()}
        self.shares.append(shares["pruned"])
        keys: dict[str, Any] = {"backend": "toy", "batch": 1, "threads": 1, "spread_ms": 0.0, "n": 1}
        return {name: Measurement(**keys, median_ms=value, speedup=1 / value) for name, value in shares.items()}


def no_outputs(*_: Any) -> torch.Tensor:
    raise AssertionError("a latency needs no outputs")


GRID = LatencyGrid(counts=(1, 2), rows=(1, 17), reduce=(1, 256), columns=(1, 256), ms=(1.0,) * 16)


class MacsTable:
    """A latency table that counts MACs."""

    fixed_ms, precision, kind, backend, batch = 0.0, "float32", "measured", "toy", 1
    matmuls = MatmulLatencies(linear=GRID, attention=GRID)

    def matmul_ms(self, shape: tuple[int, int, int, int], is_attention: bool) -> float:
        return float(shape[0] * shape[1] * shape[2] * shape[3])

    def operator_ms(self, kind: str, elements: int) -> float:
        return 0.0


def test_a_table_without_a_dimension_is_a_problem(tiny_graph: ModelGraph) -> None:
    table: Any = MacsTable()
    table.matmuls = MatmulLatencies(
        linear=GRID, attention=LatencyGrid(counts=(2,), rows=(17,), reduce=(8, 32), columns=(32,), ms=(1.0, 2.0))
    )
    (problem,) = NvitStage(config_of(group=Groups(heads=1)), table).requires(sketch(tiny_graph))
    assert problem.where == "budget.table"
    assert "only one length for heads, v" in problem.message


@pytest.mark.parametrize(("allocation", "steps"), [("solver", None), ("published", None), ("published", 4)])
def test_measuring_corrects_the_limit_within_three_rounds(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], allocation: str, steps: int | None
) -> None:
    context, device = digits_context(tiny_graph, calibration=16), SlowDevice(tiny_graph)
    deployment: Any = Deployment(device.write, no_outputs, device.write, device.latency)
    table: Any = MacsTable()
    config = config_of(
        allocation=allocation, steps=steps, per_step=96, eta=0.0, measure=True, remove_blocks=False,
        group=Groups(embed=4, heads=1, qk=4, v=4, mlp=4),
    )  # fmt: skip
    result = NvitStage(config, table).apply(tiny_graph, replace(context, deployment=deployment))
    assert 1 <= len(device.shares) <= 3
    assert device.shares[-1] == pytest.approx(result.metrics[f"measured_share.{len(device.shares)}"])
    pruned = sketch(result.graph).cost().macs / device.macs
    assert 0.1 + 0.9 * pruned == pytest.approx(0.6, rel=0.02)


def test_the_correction_is_proportional() -> None:
    assert corrected_limit(60.0, 60.0, 0.61, 0.6) == 60.0
    assert corrected_limit(60.0, 66.0, 0.75, 0.6) == pytest.approx(52.8)
