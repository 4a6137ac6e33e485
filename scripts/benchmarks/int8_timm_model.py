"""One row of the INT8 table, in a process of its own: `python int8_timm_model.py MODEL` prints JSON.

Quantize with the defaults, write the portable file, run it in ONNX Runtime with batches of two sizes, ask what is
fused. A step that fails ends the row; its reason stands in `error`.
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
"""Images times pixels times parameters: what 16 images of 224 pixels are for 86 million. Larger models take fewer."""
BATCHES = (1, 7)
"""The exporter has seen a batch of two."""


def measure(model: str) -> Row:
    """The row of one model, as far as it got."""
    torch.manual_seed(0)
    start = perf_counter()
    return filled_row(model, _fill) | {"seconds": perf_counter() - start}


def _fill(row: Row, model: str) -> None:
    graph = trace_timm(model, classifier_for(model))
    # Many models begin with a classifier of zeros, whose outputs could not go wrong.
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    data = load_data(Data(kind="digits", calibration=_calibration(graph)), graph.source, 0)
    row["stage"] = "quantize"
    with TemporaryDirectory() as folder:
        context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), Path(folder))
        quantized = PtqStage(Ptq(method="ptq")).apply(graph, context).graph
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
    """Agreement with the float model over batches of every size."""
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
    """Linear layers with codes as inputs, how many of them ONNX Runtime computes in integers, and promises broken."""
    layers = [one for one in inspection.contents.layers if one.type != "Conv" and one.activation_bits <= BITS]
    fused = [one for one in layers if inspection.kernel(one) in INTEGER_KERNELS]
    broken = [f"{one}" for one in inspection.violations]
    return {"linears": len(layers), "linears_fused": len(fused), "broken": len(broken), "first_broken": broken[:1]}


def main(model: str) -> None:
    """Print the row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(measure(model)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
