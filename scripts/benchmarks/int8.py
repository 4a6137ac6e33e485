"""INT8 of the real DeiT-Tiny by vitslim and by the tools beside it: speed in one interleaved run, size, fidelity.

Calibration is by the same images for all, from Imagenette's train folder; judged are its val folder and one image each
of 500 ImageNet classes. Files are kept in runs/int8-bench, so that a run which was interrupted goes on; delete the
folder to begin anew. Twenty minutes. Needs `openvino`, the folder that VITSLIM_SHARED_DATA names, `nncf` for its row.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from by_processor import result_here
from latency_row import latency_row
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from vitslim.backends.environment import device_name, environment
from vitslim.backends.measured.openvino import OpenVinoModel
from vitslim.backends.registry import Measured
from vitslim.data import DataModule, Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.latency import measure_on
from vitslim.progress import Silent
from vitslim.recipe.schema import Data, ReportConfig
from vitslim.recipe.stages import Export, Floor, Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import agreement, predict, sqnr_db, top1
from vitslim.workload.session import OnnxModel

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data"))
RESULT = "int8-deit-tiny"

MODEL = "deit_tiny_patch16_224"
CALIBRATION = 256
BATCH = 1
"""Images are judged one by one: dynamic quantizers take one range for all images of a batch."""
FLOOR = Floor(sqnr_db=29.5)
"""On calibration images, for inputs in float as far as they cost next to nothing. Five classes of the train folder were
calibrated on, and images of the other five were 1 to 2 dB further from the float model."""
FOLDER = ROOT / "runs" / "int8-bench"
IN_OPENVINO = " in OpenVINO"
NNCF = f"NNCF{IN_OPENVINO}"
"""ONNX Runtime does not take its file."""
SECONDS = 3.0
PRODUCTS = ["MatMul", "Gemm"]

TURNED: dict[str, Any] = {"rotate": True}
WIDE_SUMS: dict[str, Any] = {"reduce_range": False} if any(one in device_name() for one in ("VNNI", "AMX")) else {}
"""For the files that are made for this processor."""
TOKENS: dict[str, Any] = {"activation_scaling": "per-token"} | TURNED | WIDE_SUMS
W4A8: dict[str, Any] = {"bits": 4, "first_last_bits": 8} | TURNED
WIDER: dict[str, Any] = {"average_bits": 5}
INT4: dict[str, Any] = {"bits": 4, "group_size": 32, "activations": "float", "first_last_bits": 8}

Row = dict[str, Any]


def run() -> dict[str, float]:
    """Fill this processor's table in scripts/results; speed-ups over FP32 in ONNX Runtime and agreement, by variant."""
    if not (SHARED / "imagenette").exists():
        sys.exit(f"no images at {SHARED}: set VITSLIM_SHARED_DATA")
    graph = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    described = Data(kind="imagefolder", root=str(SHARED / "imagenette"), calibration=CALIBRATION,
                     also_evaluate={"samples": str(SHARED / "imagenet_samples")})  # fmt: skip
    data = load_data(described, graph.source, 0)
    files = dict(_files(graph, data))
    rows = {name: _judge(path, data, OpenVinoModel if name == NNCF else OnnxModel) for name, path in files.items()}
    reference = rows["FP32"].pop("logits")
    for row in rows.values():
        _compare(row, reference)
    _time(rows, files)
    found = {"environment": environment().model_dump(), "rows": rows}
    result_here(RESULT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return {f"{name} {key}": row[key] for name, row in rows.items() for key in ("speedup_b1", "sqnr_db", "agreement")
            if key in row}  # fmt: skip


def _files(graph: ModelGraph, data: DataModule) -> Iterator[tuple[str, Path]]:
    """Variant to its file; each is written when its turn comes, unless an earlier run has kept it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    dense = FOLDER / "fp32.onnx"
    if not dense.exists():
        export_onnx(graph, dense)
    yield "FP32", dense
    writers: dict[str, Callable[[Path], None]] = {
        "ORT quantize_static, defaults": lambda path: _ort_static(dense, path, data, {}),
        "ORT quantize_static, tuned": lambda path: _ort_static(dense, path, data, _tuned()),
        "ORT quantize_dynamic": lambda path: ort_dynamic(dense, path),
        NNCF: lambda path: _nncf(dense, path, data),
        "vitslim portable": lambda path: _ours(graph, data, path, Export(), TURNED),
        "vitslim auto": lambda path: _ours(graph, data, path, Export(profile="auto", floor=FLOOR), TOKENS),
        "vitslim W4A8, ends in INT8": lambda path: _ours(
            graph, data, path, Export(profile="ort-cpu"), W4A8
        ),
        "vitslim W4A8 in blocks of 16": lambda path: _ours(
            graph, data, path, Export(profile="ort-cpu"), W4A8 | {"group_size": 16} | WIDE_SUMS
        ),
        "vitslim W4A8 in blocks of 16, mean of 5 bits": lambda path: _ours(
            graph, data, path, Export(profile="ort-cpu"), W4A8 | {"group_size": 16} | WIDE_SUMS | WIDER
        ),
        "vitslim INT4 weights, ends in INT8": lambda path: _ours(
            graph, data, path, Export(), INT4
        ),
        "vitslim INT4 weights with zero points": lambda path: _ours(
            graph, data, path, Export(profile="ort-cpu"), INT4 | {"zero_points": True}
        ),
        "vitslim INT4 weights with zero points, mean of 5 bits": lambda path: _ours(
            graph, data, path, Export(profile="ort-cpu"), INT4 | {"zero_points": True} | WIDER
        ),
    }  # fmt: skip
    if find_spec("nncf") is None:
        print(f"{NNCF}: left out, pip install nncf", file=sys.stderr, flush=True)
        del writers[NNCF]
    for name, write in writers.items():
        path = FOLDER / f"{name}.onnx"
        if not path.exists():
            print(f"writing {name}", file=sys.stderr, flush=True)
            write(path.with_suffix(".part.onnx"))
            path.with_suffix(".part.onnx").rename(path)
        yield name, path


def _ours(graph: ModelGraph, data: DataModule, path: Path, export: Export, keys: Mapping[str, Any]) -> None:
    config = ReportConfig(backends=("onnxruntime:cpu",), batches=(1,), threads=(1,), seconds=1.0)
    scratch = path.with_suffix("")
    scratch.mkdir(exist_ok=True)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), scratch, measure_on(config, Silent()))
    quantized = PtqStage(Ptq(method="ptq", **keys)).apply(graph, context)
    result = ExportStage(export).apply(quantized.graph, context)
    for note in (note for note in result.changes if note.layer.startswith("placement")):
        print(f"  {note.layer}: {note.result} {note.reason}", file=sys.stderr, flush=True)
    (scratch / "model.onnx").rename(path)


class _Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, dataset: Dataset, name: str) -> None:
        self.batches = iter(dataset.batches(1))
        self.name = name

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next calibration image, None after the last."""
        found = next(self.batches, None)
        return None if found is None else {self.name: found[0].numpy()}


def _prepared(dense: Path) -> Path:
    """What ONNX Runtime's documentation asks for before quantization."""
    prepared = dense.with_name("prepared.onnx")
    if not prepared.exists():
        quant_pre_process(str(dense), str(prepared), skip_symbolic_shape=True)
    return prepared


def _ort_static(dense: Path, path: Path, data: DataModule, keys: dict[str, Any]) -> None:
    images = data.calibration.balanced(64)  # it keeps every activation in memory
    ort_quantization.quantize_static(str(_prepared(dense)), str(path), _Reader(images, "image"), **keys)


def _tuned() -> dict[str, Any]:
    """The best that was found: products alone, per channel, unsigned inputs, float outputs."""
    return {
        "per_channel": True, "op_types_to_quantize": PRODUCTS,
        "activation_type": ort_quantization.QuantType.QUInt8, "weight_type": ort_quantization.QuantType.QInt8,
        "extra_options": {"OpTypesToExcludeOutputQuantization": PRODUCTS, "MatMulConstBOnly": True},
    }  # fmt: skip


def ort_dynamic(dense: Path, path: Path) -> None:
    ort_quantization.quantize_dynamic(
        str(_prepared(dense)), str(path), per_channel=True, op_types_to_quantize=PRODUCTS,
        weight_type=ort_quantization.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def _nncf(dense: Path, path: Path, data: DataModule) -> None:
    import nncf

    images = nncf.Dataset([{"image": images.numpy()} for images, _ in data.calibration.batches(1)])
    kind = nncf.ModelType.TRANSFORMER
    onnx.save(nncf.quantize(onnx.load(dense), images, model_type=kind, subset_size=CALIBRATION), path)


def _judge(path: Path, data: DataModule, runtime: type[OnnxModel] | type[OpenVinoModel]) -> Row:
    model = runtime(path)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(images.numpy()))

    samples, names = predict(forward, data.extra["samples"], BATCH, Silent(), "")
    val, labels = predict(forward, data.val, BATCH, Silent(), "")
    row: Row = {"mb": path.stat().st_size / 1e6, "logits": (samples, val)}
    return row | {"top1_samples": top1(samples, names), "top1_val": top1(val, labels)}


def _compare(row: Row, reference: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = row.pop("logits", None)
    if found is not None:
        row |= {"sqnr_db": sqnr_db(reference[0], found[0]), "agreement": agreement(reference[0], found[0]),
                "agreement_val": agreement(reference[1], found[1])}  # fmt: skip


def _time(rows: dict[str, Row], files: Mapping[str, Path]) -> None:
    """One thread; every file of a backend in one interleaved run. OpenVINO gets the files that are meant for it."""
    here = {name: path for name, path in files.items() if name != NNCF}
    there = {name: path for name, path in files.items() if name in {"FP32", NNCF, "vitslim portable"}}
    for backend, chosen, suffix in (("onnxruntime:cpu", here, ""), ("openvino:cpu", there, IN_OPENVINO)):
        found = Measured(backend).measure(chosen, "FP32", (1, 8), (1,), SECONDS, Silent())
        for name, measurements in found.items():
            rows.setdefault(name.removesuffix(suffix) + suffix, {}).update(latency_row(measurements))
