"""Latency tables of a two-block ViT: built, written, read, and used by a latency budget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import vitslim
from vitslim.backends.registry import parse_backend
from vitslim.errors import InputError, RecipeError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.latency_grid import Shape
from vitslim.pipeline.bench.latency_table import (
    build_table,
    completed,
    grid_lengths,
    grid_shapes,
    matmul_latencies,
)
from vitslim.pipeline.run.stored.keys import stage_key
from vitslim.pipeline.table_file import default_path, read_table, stage_table, write_table
from vitslim.progress import Silent
from vitslim.recipe import load_recipe, validate
from vitslim.recipe.schema import Model, Recipe
from vitslim.results import LatencyTable
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload import read_workload

T = TypeVar("T")
KWARGS = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 2,
          "num_classes": 10}  # fmt: skip
MODEL = Model(timm="vit_tiny_patch16_224", kwargs=KWARGS)


def shapes_of(graph: ModelGraph) -> list[Shape]:
    found = sketch(graph)
    return [p.shape(found.axes) for p in found.matmuls]


def estimated(table: LatencyTable, graph: ModelGraph, **sizes: int) -> float:
    """Latency of a graph by a table, with some axes at other lengths."""
    found = sketch(graph).with_sizes(sizes)
    matmuls = [(p.shape(found.axes), not p.weight) for p in found.matmuls]
    return table.estimate_ms(matmuls, [(o.kind, o.elements.value(found.axes)) for o in found.operators])


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    from vitslim.graph.trace import trace_timm

    return trace_timm(MODEL.timm, dict(KWARGS))


@pytest.fixture(scope="module")
def simulated() -> LatencyTable:
    return build_table(MODEL, parse_backend("sim:systolic"), batch=2, models=4)


@pytest.fixture
def file(simulated: LatencyTable, tmp_path: Path) -> Path:
    write_table(simulated, tmp_path / "vit.table.json")
    return tmp_path / "vit.table.json"


def test_the_latency_of_a_simulated_dense_model_equals_its_estimate(
    simulated: LatencyTable, graph: ModelGraph, tmp_path: Path
) -> None:
    from vitslim.backends.simulated.systolic.estimate import estimate
    from vitslim.backends.simulated.systolic.spec import load_spec

    export_onnx(graph, tmp_path / "dense.onnx")
    whole = estimate(read_workload(tmp_path / "dense.onnx", 2), load_spec({}))
    assert simulated.dense_ms == whole.latency_ms
    assert estimated(simulated, graph) == pytest.approx(whole.latency_ms, rel=1e-6)
    assert (simulated.kind, simulated.batch, simulated.threads, simulated.n) == ("simulated", 2, None, 0)
    assert 0 < simulated.rest_ms < simulated.dense_ms


def test_a_smaller_model_is_not_slower(simulated: LatencyTable, graph: ModelGraph) -> None:
    times = [estimated(simulated, graph, **{"blocks.0.mlp": n, "embed": n // 4}) for n in (32, 100, 256)]
    assert times == sorted(times)
    assert simulated.fixed_ms < times[0] < times[-1] == pytest.approx(simulated.dense_ms)


@pytest.mark.slow
def test_the_latency_of_a_measured_dense_model_equals_the_measurement(
    graph: ModelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.pipeline.bench.latency_table.POINTS", {"measured": 2})
    labels = []

    class Watching(Silent):
        def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
            labels.append(label)
            return iter(items)

    table = build_table(MODEL, parse_backend("onnxruntime:cpu"), threads=1, progress=Watching(), models=1)
    assert [label for label in labels if "matmuls" in label]
    assert 0 <= table.token_ms <= table.rest_ms
    assert 0 <= table.squeeze_ms < table.dense_ms
    assert (table.kind, table.threads) == ("measured", 1)
    assert table.n >= 8
    assert table.dense_ms > 0
    assert table.environment.versions["onnxruntime"]
    assert estimated(table, graph) == pytest.approx(table.dense_ms, rel=1e-6)


def test_only_lengths_that_pruning_can_shorten_vary(graph: ModelGraph) -> None:
    shapes = grid_shapes(sketch(graph), 8)
    assert set(shapes_of(graph)) <= set(shapes)
    assert {shape[3] for shape in shapes if shape[1] == 1} == {10}
    assert {shape[2] for shape in shapes if shape[1] == 16} == {64}
    tokens = set(grid_lengths(17, 8, 1))
    assert {shape[1] for shape in shapes if shape[0] == 2} == tokens
    assert {(1, n, 64, 192) for n in tokens} | {(2, n, 32, n) for n in tokens} <= set(shapes)
    assert (1, 2, 64, 96) not in shapes


def test_a_simulated_table_holds_nothing_but_simulated_entries() -> None:
    some = [(1, 1, 8, 16), (1, 2, 16, 8), (3, 4, 8, 8)]
    assert set(completed(some)) == {(1, m, k, n) for m in (1, 2) for k in (8, 16) for n in (8, 16)} | {(3, 4, 8, 8)}


def test_grid_lengths() -> None:
    assert grid_lengths(192, 8, 8) == [24, 48, 72, 96, 120, 144, 168, 192]
    assert grid_lengths(3, 8, 1) == [1, 2, 3]
    assert grid_lengths(10, 8, 8) == [8, 10]
    assert grid_lengths(5, 8, 8) == [5]
    assert len(grid_lengths(3072, 8, 8)) == 8


def test_noise_is_smoothed_and_gaps_are_filled() -> None:
    grids = matmul_latencies({(1, 4, 8, 8): 2.0, (1, 4, 8, 16): 1.0, (1, 8, 16, 16): 9.0, (2, 4, 8, 8): 1.0})
    assert grids.at((1, 4, 8, 16)) == 2.0
    assert grids.at((1, 8, 16, 16)) == 9.0
    assert grids.at((2, 4, 8, 8)) == 1.0


def test_a_written_table_is_read_back(simulated: LatencyTable, file: Path) -> None:
    assert read_table(file) == simulated
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "not a latency table"),
        ("[]", "not a latency table"),
        ("HALF", "was cut off"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 3}', "schema version 3"),
        ('{"schema_version": 4}', "model: Field required"),
        ("FALLING", "must not fall"),
    ],
)
def test_corrupt_files_are_refused(file: Path, content: str | None, message: str) -> None:
    whole = file.read_text()
    document = json.loads(whole)
    document["matmuls"]["linear"]["ms"][0] = 1e9
    file.unlink()
    if content is not None:
        file.write_text({"HALF": whole[:-20], "FALLING": json.dumps(document)}.get(content, content))
    with pytest.raises(InputError, match=message) as caught:
        stage_table(budgeted(file).stages[0], 0)
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith("stages.0.prune.budget.table: ")
    assert "bench --table" in caught.value.hint


def test_a_plan_refuses_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stages\.0\.prune\.budget\.table: .*missing.json' cannot be read"):
        vitslim.build_plan(budgeted(tmp_path / "missing.json"))


def budgeted(table: Path, latency: float = 0.7, **model: Any) -> Recipe:
    document = {
        "name": "small",
        "model": {"timm": MODEL.timm, "kwargs": KWARGS, **model},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [
            {"prune": {"method": "depgraph", "round_to": 8, "budget": {"latency": latency, "table": str(table)}}},
            "export",
        ],
        "report": {"backends": ["sim:systolic"], "batches": [2]},
    }
    return validate(document, "test")


def test_a_table_of_another_model_is_a_problem(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        vitslim.build_plan(budgeted(file, kwargs={**KWARGS, "depth": 1}))
    (problem,) = caught.value.problems
    assert problem.where == "stages.0.prune.budget.table"
    assert "depth=2" in problem.message
    assert "bench --table vit_tiny_patch16_224 --kwargs img_size=32" in problem.hint


def test_the_path_is_relative_to_the_recipe(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""
        name: small
        model: {{timm: {MODEL.timm}, kwargs: {json.dumps(KWARGS)}}}
        data: {{kind: digits}}
        stages:
          - prune: {{method: depgraph, round_to: 8, budget: {{latency: 0.7, table: {file.name}}}}}
          - export
    """
    recipe = file.with_name("recipe.yaml")
    recipe.write_text(text)
    monkeypatch.chdir("/")
    loaded = load_recipe(recipe)
    assert loaded.stages[0].budget.table == str(file)  # type: ignore[union-attr]
    assert vitslim.build_plan(loaded).rows[1].cost is not None


def test_the_key_of_a_stage_holds_the_table(file: Path) -> None:
    config = budgeted(file).stages[0]
    before = stage_key("start", config)
    assert stage_key("start", config) == before
    file.write_text(file.read_text() + "\n")
    assert stage_key("start", config) != before


@pytest.mark.slow
def test_a_run_meets_its_latency_budget(file: Path, simulated: LatencyTable, tmp_path: Path) -> None:
    recipe = budgeted(file, 0.8)
    artifact = vitslim.run(recipe, tmp_path / "out")
    report = artifact.report
    assert [row.cost for row in vitslim.build_plan(recipe).rows] == [stage.cost for stage in report.stages]
    dense, pruned = (stage.estimates[0].latency_ms for stage in report.stages[:2])
    assert dense == simulated.dense_ms
    assert pruned <= 0.85 * dense
    assert str(file) in artifact.folder.joinpath("recipe.lock.yaml").read_text()


def test_default_file_names() -> None:
    assert default_path("deit_tiny_patch16_224", "onnxruntime:cpu").name == (
        "deit_tiny_patch16_224.onnxruntime-cpu.table.json"
    )
    assert default_path("m", "sim:dir/my.yaml").name == "m.sim-dir-my.yaml.table.json"
