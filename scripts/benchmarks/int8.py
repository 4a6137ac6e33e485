"""INT8 and INT4 of DeiT-Tiny with pretrained weights, by vitslim and by other tools, into scripts/results.

Latency is measured in one interleaved run. All tools calibrate on the same images of Imagenette's train folder; files
are evaluated on its val folder and on one image of each of 500 ImageNet classes. Files are kept in runs/int8-bench, so
that an interrupted run continues; delete the folder to start again. Takes about twenty minutes. Needs `openvino` and
the folder that VITSLIM_SHARED_DATA names, and `nncf` for its row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from by_processor import reduce_range_here, result_here
from latency_row import latency_row
from other_quantizers import nncf_quantize, ort_dynamic, ort_static, tuned_static
from paths import RUNS, SHARED, require_shared
from result_file import write_result

from vitslim.backends.measured.openvino import OpenVinoModel
from vitslim.backends.registry import Measured
from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.run.deployment import make_deployment
from vitslim.progress import Silent
from vitslim.recipe.schema import Data, Model, Recipe, ReportConfig
from vitslim.recipe.stages import Export, Floor, Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import agreement, predict, sqnr_db, top1
from vitslim.workload.session import OnnxModel

RESULT = "int8-deit-tiny"
MODEL = "deit_tiny_patch16_224"
DATA = Data(kind="imagefolder", root=str(SHARED / "imagenette"), calibration=256,
            also_evaluate={"samples": str(SHARED / "imagenet_samples")})  # fmt: skip
REPORT = ReportConfig(backends=("onnxruntime:cpu",), batches=(1,), threads=(1,), seconds=1.0)
"""Placement measures and judges its candidates with these settings."""
BATCH = 1
"""Batch size of the evaluation: dynamic quantizers choose one range for a whole batch."""
FLOOR = Floor(sqnr_db=29.5)
"""Placement checks it on calibration images; the SQNR of other images is 1 to 2 dB lower."""
FOLDER = RUNS / "int8-bench"
SECONDS = 3.0

PORTABLE, AUTO = "vitslim INT8, profile: portable", "vitslim INT8, placement: auto"
IN_OPENVINO = ", OpenVINO"
NNCF = f"NNCF{IN_OPENVINO}"
"""ONNX Runtime rejects this file."""
FILES = {"FP32": "fp32.onnx", PORTABLE: "int8-portable.onnx", AUTO: "int8-auto.onnx"}
"""Names of files that other benchmarks read; the others have the name of their row."""

INTEGER: dict[str, Any] = {"rotate": True, "reduce_range": reduce_range_here()}
W4A8: dict[str, Any] = INTEGER | {"bits": 4, "first_last_bits": 8}
WEIGHTS: dict[str, Any] = {"bits": 4, "group_size": 32, "activations": "float", "first_last_bits": 8}
VARIANTS: dict[str, tuple[Ptq, str]] = {
    PORTABLE: (Ptq(**INTEGER), "portable"),
    AUTO: (Ptq(**INTEGER, activation_scaling="per-token", placement="auto", floor=FLOOR), "ort-cpu"),
    "vitslim W4A8, first and last layer INT8": (Ptq(**W4A8), "ort-cpu"),
    "vitslim W4A8, group size 16": (Ptq(**W4A8, group_size=16), "ort-cpu"),
    "vitslim W4A8, group size 16, average 5 bits": (Ptq(**W4A8, group_size=16, average_bits=5), "ort-cpu"),
    "vitslim INT4 weights, group size 32": (Ptq(**WEIGHTS), "portable"),
    "vitslim INT4 weights, group size 32, zero points": (Ptq(**WEIGHTS, zero_points=True), "ort-cpu"),
    "vitslim INT4 weights, group size 32, zero points, average 5 bits": (
        Ptq(**WEIGHTS, zero_points=True, average_bits=5), "ort-cpu",
    ),
}  # fmt: skip
"""Row to the quantize stage and the export profile."""

Row = dict[str, Any]


def run() -> dict[str, float]:
    """Write the result of this processor; return speedups over FP32, SQNR and agreement by row."""
    require_shared("imagenette")
    graph = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    data = load_data(DATA, graph.source, 0)
    files = dict(_files(graph, data))
    rows = {name: _evaluate(path, data, OpenVinoModel if name == NNCF else OnnxModel) for name, path in files.items()}
    reference = rows["FP32"].pop("logits")
    for row in rows.values():
        _compare(row, reference)
    _measure(rows, files)
    write_result(result_here(RESULT), rows=rows)
    return {f"{name} {key}": row[key] for name, row in rows.items() for key in ("speedup_b1", "sqnr_db", "agreement")
            if key in row}  # fmt: skip


def _files(graph: ModelGraph, data: DataModule) -> Iterator[tuple[str, Path]]:
    """Yield each row with its file, which is written unless an earlier run kept it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    dense = FOLDER / FILES["FP32"]
    if not dense.exists():
        export_onnx(graph, dense)
    yield "FP32", dense
    for name, write in _writers(graph, data, dense).items():
        path = FOLDER / FILES.get(name, f"{name}.onnx")
        if not path.exists():
            print(f"writing {name}", file=sys.stderr, flush=True)
            write(path.with_suffix(".part.onnx"))
            path.with_suffix(".part.onnx").rename(path)
        yield name, path


def _writers(graph: ModelGraph, data: DataModule, dense: Path) -> dict[str, Callable[[Path], None]]:
    writers: dict[str, Callable[[Path], None]] = {
        "ORT quantize_static, defaults": lambda path: ort_static(dense, path, data, {}),
        "ORT quantize_static, tuned": lambda path: ort_static(dense, path, data, tuned_static()),
        "ORT quantize_dynamic": lambda path: ort_dynamic(dense, path),
        NNCF: lambda path: nncf_quantize(dense, path, data),
    }
    if find_spec("nncf") is None:
        print(f"{NNCF}: skipped, pip install nncf", file=sys.stderr, flush=True)
        del writers[NNCF]
    for name, (config, profile) in VARIANTS.items():
        writers[name] = _vitslim_writer(graph, data, config, Export(profile=profile))
    return writers


def _vitslim_writer(graph: ModelGraph, data: DataModule, config: Ptq, export: Export) -> Callable[[Path], None]:
    recipe = Recipe(name=RESULT, model=Model(timm=MODEL), data=DATA, stages=(config, export), report=REPORT)

    def write(path: Path) -> None:
        scratch = path.with_suffix("")
        scratch.mkdir(exist_ok=True)
        deployment = make_deployment(recipe, Silent())
        context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), scratch, deployment)
        quantized = PtqStage(config).apply(graph, context)
        for note in (note for note in quantized.changes if note.layer.startswith("placement")):
            print(f"  {note.layer}: {note.result} {note.reason}", file=sys.stderr, flush=True)
        ExportStage(export).apply(quantized.graph, context)
        (scratch / "model.onnx").rename(path)

    return write


def _evaluate(path: Path, data: DataModule, runtime: type[OnnxModel] | type[OpenVinoModel]) -> Row:
    model = runtime(path)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(images.numpy()))

    samples, names = predict(forward, data.extra["samples"], BATCH, Silent(), "")
    val, labels = predict(forward, data.val, BATCH, Silent(), "")
    row: Row = {"mb": path.stat().st_size / 1e6, "logits": (samples, val)}
    return row | {"top1_samples": top1(samples, names), "top1_val": top1(val, labels)}


def _compare(row: Row, reference: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits = row.pop("logits", None)
    if logits is not None:
        row |= {"sqnr_db": sqnr_db(reference[0], logits[0]), "agreement": agreement(reference[0], logits[0]),
                "agreement_val": agreement(reference[1], logits[1])}  # fmt: skip


def _measure(rows: dict[str, Row], files: Mapping[str, Path]) -> None:
    """Add the latency of one thread, with all files of a backend in one interleaved run, to the rows."""
    names = {"onnxruntime:cpu": files.keys() - {NNCF}, "openvino:cpu": files.keys() & {"FP32", NNCF, PORTABLE}}
    for backend, suffix in (("onnxruntime:cpu", ""), ("openvino:cpu", IN_OPENVINO)):
        chosen = {name: path for name, path in files.items() if name in names[backend]}
        measurements = Measured(backend).measure(chosen, "FP32", (1, 8), (1,), SECONDS, Silent())
        for name, found in measurements.items():
            rows.setdefault(name.removesuffix(suffix) + suffix, {}).update(latency_row(found))
