"""One row of the table of `int8-timm`: `python int8_timm_model.py MODEL` prints it as JSON.

Quantizes with the defaults, writes the portable file, runs it in ONNX Runtime at two batch sizes, and counts the fused
GEMMs. A step that fails ends the row; `error` holds the reason.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from timm_models import Row, classifier_for, filled_row

from vitslim.backends.measured.kernels import INTEGER_KERNELS
from vitslim.data import DataModule, load_data
from vitslim.graph.edits.fake_quant import layer_nodes, quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import draw_weights
from vitslim.pipeline.inspect.inspection import Inspection, inspect
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import agreement, sqnr_db

BITS = 8
CALIBRATION_MIN, CALIBRATION_MAX = 2, 16
WORK = 7e13
"""Largest product of images, pixels and parameters: 16 images of 224 x 224 pixels and 86 million parameters. Larger
models get fewer calibration images."""
BATCHES = (1, 7)
"""Batch sizes of the runs; the export uses a batch of two."""


def measure(model: str) -> Row:
    """Return the row of one model, up to the first step that fails."""
    torch.manual_seed(0)
    start = perf_counter()
    return filled_row(model, _fill) | {"seconds": perf_counter() - start}


def _fill(row: Row, model: str) -> None:
    graph = trace_timm(model, classifier_for(model))
    # The classifier of many models is initialized with zeros, so that all outputs would be equal.
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    data = load_data(Data(kind="digits", calibration=_calibration(graph)), graph.source, 0)
    row["stage"] = "quantize"
    with TemporaryDirectory() as folder:
        context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), Path(folder))
        quantized = PtqStage(Ptq(reduce_range=True)).apply(graph, context).graph
        row |= {"layers": len(layer_nodes(graph.module)), "layers_quantized": len(quantized_layers(quantized.module))}
        row["stage"] = "export"
        path = Path(folder) / "model.onnx"
        row["mb_int8"] = export_onnx(quantized, path).bytes / 1e6
        row["mb_float"] = sum(tensor.numel() * tensor.element_size() for tensor in graph.parameters().values()) / 1e6
        row["stage"] = "run"
        row |= _run(graph, path, data)
        row["stage"] = "inspect"
        row |= _fused(inspect(path))


def _calibration(graph: ModelGraph) -> int:
    parameters = sum(tensor.numel() for tensor in graph.parameters().values())
    _, height, width = graph.source.image
    return min(CALIBRATION_MAX, max(CALIBRATION_MIN, int(WORK / (parameters * height * width))))


def _run(graph: ModelGraph, path: Path, data: DataModule) -> Row:
    """Return agreement and SQNR against the float model over all batch sizes."""
    file = OnnxFile(path, exact=False)
    expected, found = [], []
    for number, size in enumerate(BATCHES):
        images = torch.stack([data.val[7 * number + index][0] for index in range(size)])
        with torch.no_grad():
            expected.append(graph.module(images))
        found.append(file(images))
    before, after = torch.cat(expected), torch.cat(found)
    if not bool(after.isfinite().all()):
        raise ValueError("logits are not finite")
    sizes = " ".join(map(str, BATCHES))
    return {"batches": sizes, "agreement": agreement(before, after), "sqnr_db": sqnr_db(before, after)}


def _fused(inspection: Inspection) -> Row:
    """Return the numbers of linear layers with quantized activations, of their integer kernels, and of violations."""
    layers = [one for one in inspection.contents.layers if one.type != "Conv" and one.activation_bits <= BITS]
    fused = [one for one in layers if inspection.kernel(one) in INTEGER_KERNELS]
    violations = [f"{one}" for one in inspection.violations]
    fields = {"linears": len(layers), "linears_fused": len(fused)}
    return fields | {"broken": len(violations), "first_broken": violations[:1]}


def main(model: str) -> None:
    """Print the row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(measure(model)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
