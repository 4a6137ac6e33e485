"""Rows of `scripts/bench nvit` after training, at equal measured latency.

All arms run at 0.75 and 0.6 of the dense INT8 latency on Caltech-101 with labels, from a DeiT-Tiny that was fine-tuned
there; the best two also in FP32, and on Imagenette without labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from caltech import caltech
from kept_model import folder_of, make_model, predictions
from nvit_arms import ARMS, BACKEND, FOLDER, INT8, MODEL, TRAINS, Arm, deployment, measure, table_of
from paired_bootstrap import difference
from paths import SHARED, require_shared

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost
from vitslim.graph.trace import trace_timm
from vitslim.latency_grid import Precision
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.results import LatencyTable
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.nvit.measured_target import ROUNDS, TOLERANCE
from vitslim.stages.registry import make_stage

SHARES = (0.75, 0.6)
EPOCHS = 2
"""In all: arms that train while pruning use up to one of them for that."""
BEST = 2


def trained_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a row for each arm at each share, then those of the best two in FP32 and without labels."""
    dense, images = caltech()
    scores: dict[str, float] = {}
    for share in SHARES:
        for name, row in _rows("caltech int8", dense, images, ARMS, share, "int8", has_labels=True):
            arm = name.rpartition(" ")[0].removeprefix("caltech int8 ")
            scores[arm] = scores.get(arm, 0.0) + row["top1_val"] / len(SHARES)
            yield name, row
    best = {name: ARMS[name] for name in sorted(scores, key=lambda arm: -scores[arm])[:BEST]}
    for share in SHARES:
        yield from _rows("caltech float32", dense, images, best, share, "float32", has_labels=True)
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    imagenette = load_data(Data(kind="imagefolder", root=str(require_shared("imagenette")), calibration=256,
                                also_evaluate={"samples": str(SHARED / "imagenet_samples")}),
                           dense.source, 0)  # fmt: skip
    for share in SHARES:
        yield from _rows("imagenette int8", dense, imagenette, best, share, "int8", has_labels=False)


def _rows(
    task: str,
    dense: ModelGraph,
    data: DataModule,
    arms: Mapping[str, Arm],
    share: float,
    precision: Precision,
    *,
    has_labels: bool,
) -> Iterator[tuple[str, dict[str, Any]]]:
    root = folder_of(FOLDER, task) / str(share)
    table = table_of(MODEL, dict(dense.source.kwargs), BACKEND, 1, precision)
    sets = {"val": data.val, **data.extra}
    labels = {name: torch.as_tensor(found.labels) for name, found in sets.items()}
    reference = {name: logits.argmax(1) for name, logits in predictions(root / "dense", dense, sets).items()}
    baseline: dict[str, torch.Tensor] = {}
    finished = {}
    for name, arm in arms.items():
        folder = folder_of(root, name)
        result = _made(folder, name, arm, dense, data, share, table, has_labels)
        found = {key: one.argmax(1) for key, one in predictions(folder, result.graph, sets).items()}
        finished[name] = result.graph, found
        baseline = baseline or found
    speedups = _speedups(root, dense, data, {name: graph for name, (graph, _) in finished.items()}, precision)
    for name, (graph, found) in finished.items():
        row: dict[str, Any] = {"share": share, "measured_share": 1 / speedups[name],
                               "macs_ratio": cost(graph).macs / cost(dense).macs}  # fmt: skip
        for key, classes in found.items():
            right, same = (classes == labels[key]).float(), (classes == reference[key]).float()
            row |= {f"top1_{key}": float(right.mean()), f"agreement_{key}": float(same.mean()),
                    f"top1_over_first_{key}": difference(right, (baseline[key] == labels[key]).float())}  # fmt: skip
        yield f"{task} {name} {share}", row


def _made(  # noqa: PLR0913, PLR0917
    folder: Path, name: str, arm: Arm, dense: ModelGraph, data: DataModule, share: float, table: LatencyTable,
    has_labels: bool,
) -> StageResult:  # fmt: skip
    """Return the pruned, trained and, for an INT8 table, quantized model of an arm."""
    budget = _corrected(folder, name, arm, dense, data, share, table, has_labels)
    train = Distill(labels="dataset" if has_labels else "teacher", loss=Loss(hard=1, soft=10),
                    train=Train(epochs=EPOCHS - (name in TRAINS), batch=32, lr=1e-4, precision="auto"))  # fmt: skip
    stages = [arm(budget, table, has_labels), make_stage(train)]
    if table.precision == "int8":
        stages.append(make_stage(INT8))
    return make_model(folder, dense, stages, data, deployment=deployment(data.calibration))


def _corrected(  # noqa: PLR0913, PLR0917
    folder: Path, name: str, arm: Arm, dense: ModelGraph, data: DataModule, share: float, table: LatencyTable,
    has_labels: bool,
) -> float:  # fmt: skip
    """Return the budget at which the measured latency is the share; NViT corrects its budget by itself."""
    kept = folder / "budget.json"
    if name.startswith("nvit"):
        return share
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        budget, using = share, deployment(data.calibration)
        write = using.write_int8 if table.precision == "int8" else using.write
        files = {"dense": folder / "dense.onnx", "pruned": folder / "pruned.onnx"}
        write(dense, files["dense"])
        for _ in range(ROUNDS):
            context = StageContext(data, 0, Silent(), lambda _: StageResult(dense), folder)
            write(arm(budget, table, has_labels).apply(dense, context).graph, files["pruned"])
            measured = 1 / (measure(files)["pruned"].speedup or 1.0)
            if abs(measured / share - 1) <= TOLERANCE:
                break
            budget = min(1.0, budget * share / measured)
        kept.write_text(json.dumps(budget), encoding="utf-8")
    found: float = json.loads(kept.read_text("utf-8"))
    return found


def _speedups(
    root: Path, dense: ModelGraph, data: DataModule, graphs: Mapping[str, ModelGraph], precision: Precision
) -> dict[str, float]:
    """Return the measured speedup of each model, all interleaved with the dense one of the same precision."""
    files = {"dense": root / "dense.latency.onnx"}
    using = deployment(data.calibration)
    (using.write_int8 if precision == "int8" else using.write)(dense, files["dense"])
    for name, graph in graphs.items():
        files[name] = folder_of(root, name) / "latency.onnx"
        export_onnx(replace(graph), files[name], ORT_CPU)
    return {name: found.speedup or 1.0 for name, found in measure(files).items()}
