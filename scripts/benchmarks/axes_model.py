"""One row of the coverage table, in a process of its own: `python axes_model.py MODEL` prints JSON.

Everything that can be cut is halved, by random indices: export, inference, permutation, forward, backward, and the ONNX
file of what is left against the graph. A step that fails ends the row; its reason stands in `error`.
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
from vitslim.stages.export.check import OnnxFile, compare_logits
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.depgraph.schedule import choose_cuts

HALVE = DepGraph(method="depgraph", pruning_ratio=0.5, round_to=1)
RUNS = 2
IMAGES = 2


def measure(model: str) -> Row:
    """The row of one model, as far as it got."""
    torch.manual_seed(0)
    return filled_row(model, _fill)


def _fill(row: Row, model: str) -> None:
    kwargs = classifier_for(model)
    row["classifier_added"] = bool(kwargs)
    start = perf_counter()
    graph = trace_timm(model, kwargs)
    row["trace_s"] = perf_counter() - start
    # Many models begin with a classifier of zeros, whose outputs could not go wrong.
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    row["stage"] = "prune"
    pruned = _prune(row, graph)
    row["stage"] = "verify"
    found = verify_axes(graph)
    row |= {"permutation_error": found.max_error, "permutation_dtype": found.dtype, "holds": found.holds}
    row["stage"] = "train"
    row["finite_gradients"] = _trains(pruned)
    row["stage"] = "onnx"
    row["onnx_relative_error"] = _exports(pruned)


def _prune(row: Row, graph: ModelGraph) -> ModelGraph:
    """The model with every axis halved, no tensor's dimension more than once."""
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
    # A sketch infers the axes that it needs, so the second figure holds both.
    row |= {"infer_s": min(infer_s), "prune_s": min(prune_s), "params_before": before, "params_after": after}
    row |= {"axes": len(graph.axes.axes), "prunable_axes": len(graph.axes.prunable), "cut_axes": len(keep)}
    row |= {"prunable_share": prunable_share(graph), "unknown_ops": " ".join(graph.axes.unknown_ops)}
    return pruned


def _trains(graph: ModelGraph) -> bool:
    """One step forward and back; whether every parameter that got a gradient got a finite one."""
    copy = graph.copy()
    logits = copy.module(torch.randn(IMAGES, *graph.source.image))
    logits.square().mean().backward()
    gradients = [weight.grad for weight in copy.parameters().values() if weight.grad is not None]
    return bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)


def _exports(graph: ModelGraph) -> float:
    """Relative error of the ONNX file on images of which there are more than the export has seen."""
    images = torch.randn(IMAGES + 1, *graph.source.image)
    with TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        export_onnx(graph, path)
        return compare_logits(graph.module(images), OnnxFile(path)(images)).relative_error


def main(model: str) -> None:
    """Print the row, then what Torch-Pruning adds to it where it is installed: two lines, so that none is lost."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = measure(model)
    print(json.dumps(row), flush=True)
    if row["stage"] == "done" and find_spec("torch_pruning") is not None:
        from torch_pruning_model import measure as measure_peer

        print(json.dumps(measure_peer(model)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
