"""Latency tables of a two-block ViT with fewer tokens, and token schedules that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vitslim
from vitslim.backends.registry import parse_backend
from vitslim.errors import RecipeError
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import attention_cuts, sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.bench.latency_table import build_table
from vitslim.pipeline.table_file import write_table
from vitslim.recipe import validate
from vitslim.recipe.schema import Model, Recipe
from vitslim.results import LatencyTable
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.token_squeeze.schedule.choose import kept_tokens
from vitslim.stages.token_squeeze.schedule.cost_model import table_latency
from vitslim.stages.token_squeeze.schedule.costs import schedule_costs

KWARGS = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 2,
          "num_classes": 10}  # fmt: skip
MODEL = Model(timm="vit_tiny_patch16_224", kwargs=KWARGS)
SMALL_ARRAY = {"sim": "systolic", "array": [8, 8]}
"""An array so small that fewer tokens save time."""


@pytest.fixture(scope="module")
def on_small_array() -> LatencyTable:
    return build_table(MODEL, parse_backend(SMALL_ARRAY), batch=16, models=0)


@pytest.fixture
def small_array_file(on_small_array: LatencyTable, tmp_path: Path) -> Path:
    write_table(on_small_array, tmp_path / "small.table.json")
    return tmp_path / "small.table.json"


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return trace_timm(MODEL.timm, dict(KWARGS))


@pytest.mark.slow
def test_the_latency_of_a_simulated_squeezed_model_is_near_its_estimate(
    on_small_array: LatencyTable, graph: ModelGraph, tmp_path: Path
) -> None:
    dense = sketch(graph)
    costs = schedule_costs(
        dense, dense.blocks, range(16, 1, -1), attention_cuts, table_latency(on_small_array), added=0
    )
    assert costs.dense == pytest.approx(on_small_array.dense_ms, rel=1e-9)
    for levels in ((8, 8), (6, 12), (14, 14)):
        path = tmp_path / "squeezed.onnx"
        export_onnx(insert_squeeze(graph, kept_tokens(levels, costs, 0)), path)
        whole = parse_backend(SMALL_ARRAY).estimate(path, 16)  # type: ignore[union-attr]
        assert costs.of(levels) == pytest.approx(whole.latency_ms, rel=0.1)


def scheduled(table: Path, latency: float, **model: Any) -> Recipe:
    keys = {"schedule": {"latency": latency, "table": str(table)}, "blocks": [0, 1]}
    document = {
        "name": "small",
        "model": {"timm": MODEL.timm, "kwargs": KWARGS, **model},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [{"token-squeeze": {"method": "etps", **keys}}, "export"],
        "report": {"backends": [SMALL_ARRAY], "batches": [16]},
    }
    return validate(document, "test")


@pytest.mark.slow
def test_a_run_meets_the_latency_of_its_token_schedule(small_array_file: Path, tmp_path: Path) -> None:
    recipe = scheduled(small_array_file, 0.85)
    plan = vitslim.build_plan(recipe)
    assert [row.approximate for row in plan.rows] == [False, True, True]
    artifact = vitslim.run(recipe, tmp_path / "out")
    dense, squeezed = artifact.report.stages[:2]
    assert 0.7 < squeezed.metrics["latency_share"] <= 0.85
    assert squeezed.estimates[0].latency_ms < 0.95 * dense.estimates[0].latency_ms
    assert str(small_array_file) in artifact.folder.joinpath("recipe.lock.yaml").read_text()


@pytest.mark.slow
def test_a_plan_refuses_a_token_schedule_that_cannot_be_reached(small_array_file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(scheduled(small_array_file, 0.1))
    (problem,) = caught.value.problems
    assert problem.where == "stages.0.token-squeeze.schedule.latency"
    assert "0.1 of the latency cannot be reached: 0." in problem.message
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(scheduled(small_array_file, 0.8, kwargs={**KWARGS, "depth": 1}))
    assert caught.value.problems[0].where == "stages.0.token-squeeze.schedule.table"
