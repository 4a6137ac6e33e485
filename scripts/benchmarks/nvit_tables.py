"""Rows of `scripts/bench nvit` for latency tables: errors on 20 random pruned models that the table has not seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nvit_arms import FOLDER, MODEL, table_of

from vitslim.backends.registry import parse_backend
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.trace import trace_timm
from vitslim.latency_grid import Precision
from vitslim.pipeline.bench.table_models import Timing, pruned_models
from vitslim.progress import Silent
from vitslim.results import LatencyTable

MODELS, SEED = 20, 1
"""Models that a table is judged on; tables are built from models of seed 0."""
CASES: tuple[tuple[str, int, Precision], ...] = (
    ("onnxruntime:cpu", 1, "float32"),
    ("onnxruntime:cpu", 1, "int8"),
    ("sim:a100", 1, "float32"),
    ("sim:a100", 256, "float32"),
)


def table_rows() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield rows with the median and the worst error, of the share of the dense latency and of the latency."""
    graph = trace_timm(MODEL, {})
    pruned = pruned_models(graph, sketch(graph), MODELS, SEED)
    for backend, batch, precision in CASES:
        name = f"table {backend} batch {batch} {precision}"
        kept = FOLDER / f"{name.replace(':', '-').replace(' ', '-')}.json"
        if not kept.exists():
            row = _errors(graph, pruned, backend, batch, precision)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row), encoding="utf-8")
        yield name, json.loads(kept.read_text("utf-8"))


def _errors(
    graph: ModelGraph, pruned: list[ModelGraph], backend: str, batch: int, precision: Precision
) -> dict[str, float]:
    table = table_of(MODEL, {}, backend, batch, precision)
    folder = FOLDER / "models" / precision / backend.partition(":")[0]
    folder.mkdir(parents=True, exist_ok=True)
    timing = Timing(parse_backend(backend), batch, 1, precision, folder, Silent())
    timing.write(graph, timing.dense)
    shares = timing.shares({f"m{i}": one for i, one in enumerate(pruned)})
    estimates = [_estimate(table, sketch(one)) / _estimate(table, sketch(graph)) for one in pruned]
    errors = np.abs(np.array(estimates) / np.array(list(shares.values())) - 1)
    assert table.check is not None
    _delete(folder)
    return {"median_error": float(np.median(errors)), "worst_error": float(errors.max()),
            "cross_validated_median": table.check.median_error, "cross_validated_worst": table.check.worst_error,
            "dense_ms": table.dense_ms}  # fmt: skip


def _estimate(table: LatencyTable, found: ModelSketch) -> float:
    matmuls = [(p.shape(found.axes), not p.weight) for p in found.matmuls]
    return table.estimate_ms(matmuls, [(o.kind, o.elements.value(found.axes)) for o in found.operators])


def _delete(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        path.unlink()
