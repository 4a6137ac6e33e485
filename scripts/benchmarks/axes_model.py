"""One row of the table of `axes`: `python axes_model.py MODEL` prints it as JSON.

Every prunable axis is halved at random indices. The row records the trace, axis inference, the permutation test, one
training step, and the comparison of the ONNX file with the graph. A step that fails ends the row; `error` holds the
reason.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from timm_models import Row, classifier_for, filled_row

from vitslim.graph.axes import infer_axes
from vitslim.graph.coverage import prunable_share
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import draw_weights, verify_axes
from vitslim.recipe.stages import DepGraph
from vitslim.stages.export.check import OnnxFile, compare_outputs
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.depgraph.schedule import choose_cuts

HALVE = DepGraph(method="depgraph", pruning_ratio=0.5, round_to=1)
RUNS = 2
IMAGES = 2


def measure(model: str) -> Row:
    """Return the row of one model, up to the first step that fails."""
    torch.manual_seed(0)
    return filled_row(model, _fill)


def _fill(row: Row, model: str) -> None:
    kwargs = classifier_for(model)
    row["classifier_added"] = bool(kwargs)
    start = perf_counter()
    graph = trace_timm(model, kwargs)
    row["trace_s"] = perf_counter() - start
    # The classifier of many models is initialized with zeros, so that all outputs would be equal.
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    row["stage"] = "prune"
    pruned = _prune(row, graph)
    row["stage"] = "verify"
    found = verify_axes(graph)
    row |= {"permutation_error": found.max_error, "permutation_dtype": found.dtype, "holds": found.holds}
    row["stage"] = "train"
    row["finite_gradients"] = _has_finite_gradients(pruned)
    row["stage"] = "onnx"
    row["onnx_relative_error"] = _onnx_error(pruned)


def _prune(row: Row, graph: ModelGraph) -> ModelGraph:
    """Return the model with every axis halved; no dimension of a tensor is halved twice."""
    infer_s, prune_s = [], []
    for _ in range(RUNS):
        graph.forget_axes()
        start = perf_counter()
        infer_axes(graph.module, graph.source.image)
        infer_s.append(perf_counter() - start)
        start = perf_counter()
        keep = choose_cuts(sketch(graph), HALVE).keep
        kept = {n: torch.randperm(graph.axes[n].size)[:count].sort().values.tolist() for n, count in keep.items()}
        pruned = slice_axes(graph, kept)
        prune_s.append(perf_counter() - start)
    before, after = (sum(w.numel() for w in g.parameters().values()) for g in (graph, pruned))
    # `sketch` infers the axes, so `prune_s` includes the inference.
    row |= {"infer_s": min(infer_s), "prune_s": min(prune_s), "params_before": before, "params_after": after}
    row |= {"axes": len(graph.axes.axes), "prunable_axes": len(graph.axes.prunable), "cut_axes": len(keep)}
    row |= {"prunable_share": prunable_share(graph), "unknown_ops": " ".join(graph.axes.unknown_ops)}
    return pruned


def _has_finite_gradients(graph: ModelGraph) -> bool:
    """Run one forward and backward pass, and return whether all gradients are finite."""
    copy = graph.copy()
    logits = copy.module(torch.randn(IMAGES, *graph.source.image))
    logits.square().mean().backward()
    gradients = [weight.grad for weight in copy.parameters().values() if weight.grad is not None]
    return bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)


def _onnx_error(graph: ModelGraph) -> float:
    """Return the relative error of the ONNX file, at another batch size than the one of the export."""
    images = torch.randn(IMAGES + 1, *graph.source.image)
    with TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        export_onnx(graph, path)
        return compare_outputs(graph.module(images), OnnxFile(path)(images)).relative_error


def main(model: str) -> None:
    """Print the row, then the columns of Torch-Pruning on a second line, so that a crash there keeps the row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = measure(model)
    print(json.dumps(row), flush=True)
    if row["stage"] == "done" and find_spec("torch_pruning") is not None:
        from torch_pruning_model import measure as measure_peer

        print(json.dumps(measure_peer(model)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
