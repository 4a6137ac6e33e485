"""Rows of `scripts/bench tps` for latency: all methods at keep rate 0.7, FP32 and INT8, in one interleaved run.

Weights are random: latency does not depend on them. The time of each kind of operator is that of ONNX Runtime's
profiler at batch 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from by_processor import reduce_range_here
from latency_row import latency_row

from vitslim.backends.measured.operator_times import operator_times
from vitslim.backends.registry import Measured
from vitslim.data import load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Dtps, Etps, Evit, PruneOnly, Ptq, StageConfig, Tome
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.registry import make_stage
from vitslim.workload.session import CPU_PROVIDER

BACKEND = "onnxruntime:cpu"
MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224")
BATCHES, SECONDS = (1, 8), 3.0
RATE = 0.7
METHODS: dict[str, StageConfig | None] = {
    "dense": None,
    "prune-only": PruneOnly(method="prune-only", keep_rate=RATE),
    "evit": Evit(method="evit", keep_rate=RATE),
    "etps": Etps(method="etps", keep_rate=RATE),
    "dtps": Dtps(method="dtps", keep_rate=RATE),
    "tome": Tome(method="tome", remove=13),
}
INT8 = Ptq(rounding="nearest", bias_correction=False, reduce_range=reduce_range_here())


def speed_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with latency, speedup, MACs, the speedup as a fraction of the ratio of MACs, and operators."""
    for model in MODELS:
        for precision in ("FP32", "INT8"):
            yield from _rows(model, precision)


def _rows(model: str, precision: str) -> Iterator[tuple[str, dict[str, Any]]]:
    dense = trace_timm(model, {})
    with TemporaryDirectory() as folder:
        files, macs = {}, {}
        for name, config in METHODS.items():
            graph = _graph(dense, config, precision, Path(folder))
            files[name], macs[name] = Path(folder) / f"{name}.onnx", cost(graph).macs
            export_onnx(graph, files[name], ORT_CPU)
        found = Measured(BACKEND).measure(files, "dense", BATCHES, (1,), SECONDS, Silent())
        operators = {name: _operators_ms(file) for name, file in files.items()}
    for name in METHODS:
        row = latency_row(found[name]) | {"gmacs": macs[name] / 1e9, "macs_ratio": macs["dense"] / macs[name]}
        efficiency = {f"efficiency_b{batch}": row[f"speedup_b{batch}"] / row["macs_ratio"] for batch in BATCHES}
        yield f"{model} {precision} {name}", row | efficiency | {"operators_ms_b1": operators[name]}


def _operators_ms(file: Path) -> dict[str, float]:
    """Return the milliseconds of each kind of operator for one image on one thread."""
    found: dict[str, float] = defaultdict(float)
    for operator in operator_times(file, 1, 1, CPU_PROVIDER):
        found[operator.op] += operator.median_us / 1e3
    return dict(found)


def _graph(dense: ModelGraph, config: StageConfig | None, precision: str, folder: Path) -> ModelGraph:
    data = load_data(Data(kind="digits", calibration=8), dense.source, 0)
    context: Any = StageContext(data, 0, Silent(), lambda _: StageResult(dense), folder)
    configs = [one for one in (config, INT8 if precision == "INT8" else None) if one is not None]
    graph = dense
    for one in configs:
        graph = make_stage(one).apply(graph, context).graph
    return graph
