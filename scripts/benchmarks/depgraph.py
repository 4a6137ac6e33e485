"""Importance scores of DepGraph on DeiT-Tiny with pretrained weights, compared with Torch-Pruning in one run.

Every model is pruned to the same fraction of the MACs, compared with the dense model on the same validation images,
distilled from the dense model for the same few steps, and compared again. Torch-Pruning gets the same calibration
batches, and prunes to the number of parameters of vitslim's Taylor model. Needs `uv pip install torch-pruning` and the
folder that VITSLIM_SHARED_DATA names, with deit_tiny/model.safetensors and imagenette/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from time import perf_counter
from typing import Any

import timm
import torch
import torch_pruning
from paired_bootstrap import difference
from paths import RESULTS, SHARED, require_shared
from result_file import write_result
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as f
from torch_pruning_model import pruner_of, write_back

from vitslim.data import DataModule, Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Budget, DepGraph
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.cutting import Cutter, rank_lists, score_inputs
from vitslim.stages.prune.depgraph.stage import DepGraphStage
from vitslim.stages.prune.depgraph.targets import find_targets
from vitslim.training import LOSS, Objective, train
from vitslim.training.evaluate import predict
from vitslim.training.losses import soft_loss

RESULT = RESULTS / "depgraph-deit-tiny.json"
WEIGHTS = SHARED / "deit_tiny" / "model.safetensors"

MODEL = "deit_tiny_patch16_224"
SHARES = (0.85, 0.7, 0.5)
IMPORTANCES = ("random", "magnitude_l2", "taylor", "hessian")
PEER = "torch-pruning taylor"
CONTRASTS = (
    ("magnitude_l2", "random"), ("taylor", "magnitude_l2"), ("hessian", "magnitude_l2"), ("taylor", PEER),
)  # fmt: skip
"""Pairs of importances; the first is expected to be better."""

BATCHES, BATCH = 8, 32
VAL_IMAGES = 500
RUNS = 5
TRAIN = Train(epochs=1, batch=32, lr=1e-4, images=960)


def run() -> dict[str, float]:
    """Fill scripts/results/depgraph-deit-tiny.json, and return the agreement by fraction, importance and phase."""
    folder = require_shared("imagenette")
    graph = trace_timm(MODEL, {}, WEIGHTS)
    data = load_data(Data(kind="imagefolder", root=str(folder), calibration=BATCHES * BATCH), graph.source, 0)
    val, images = data.val.balanced(VAL_IMAGES), data.train.balanced(TRAIN.images)
    dense, labels = predict(graph.module, val, BATCH, Silent(), "")
    teacher, _ = predict(graph.module, images, BATCH, Silent(), "")
    seconds = _seconds(graph, _context(data))
    print(json.dumps({"seconds": seconds}), flush=True)
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        kept: dict[str, dict[str, Tensor]] = {}
        for name, module in _models(graph, data, share):
            row: dict[str, Any] = {"share": share, "importance": name, "params": _size(module)}
            for phase in ("pruned", "distilled"):
                if phase == "distilled":
                    _distill(module, images, teacher)
                logits, _ = predict(module, val, BATCH, Silent(), "")
                kept[f"{name} {phase}"] = found = _compare(dense, logits, labels)
                row |= {f"{phase}_{key}": float(values.mean()) for key, values in found.items()}
            rows.append(row)
            print(json.dumps(row), flush=True)
        rows += _contrasts(share, kept)
        write_result(RESULT, seconds=seconds, rows=rows)
    return {
        f"{row['share']:g} {row['importance']} {phase}": row[f"{phase}_agreement"]
        for row in rows if "importance" in row for phase in ("pruned", "distilled")
    }  # fmt: skip


def _models(graph: ModelGraph, data: DataModule, share: float) -> Iterator[tuple[str, nn.Module]]:
    params = 0
    for importance in IMPORTANCES:
        config = DepGraph(method="depgraph", importance=importance, budget=Budget(macs=share), round_to=1,
                          batches=BATCHES, batch=BATCH)  # fmt: skip
        module = DepGraphStage(config).apply(graph, _context(data)).graph.module
        params = _size(module) if importance == "taylor" else params
        yield importance, module
    yield PEER, _peer(data.calibration, params)


def _peer(calibration: Dataset, params: int) -> nn.Module:
    """Prune with Torch-Pruning's Taylor importance, at the ratio whose number of parameters is closest to `params`."""
    random, taylor = torch_pruning.importance.RandomImportance(), torch_pruning.importance.GroupTaylorImportance()
    low, high = 0.0, 0.9
    for _ in range(10):
        ratio = (low + high) / 2
        low, high = (ratio, high) if _size(_peer_pruned(ratio, random)) > params else (low, ratio)
    best = min((low, high), key=lambda ratio: abs(_size(_peer_pruned(ratio, random)) - params))
    return _peer_pruned(best, taylor, list(calibration.batches(BATCH, shuffle_seed=0)))


def _peer_pruned(ratio: float, importance: Any, batches: list[tuple[Tensor, Tensor]] | None = None) -> nn.Module:
    net = _peer_model()
    pruner = pruner_of(net, torch.randn(1, 3, 224, 224), importance, ratio, 1)
    for images, labels in batches or []:
        f.cross_entropy(net(images), labels).backward()
    pruner.step()
    write_back(pruner)
    return net


def _peer_model() -> nn.Module:
    net: nn.Module = timm.create_model(MODEL, pretrained=False).eval()
    net.load_state_dict(load_file(WEIGHTS))
    return net


def _seconds(graph: ModelGraph, context: StageContext) -> dict[str, float]:
    """Return the shortest time to halve the width by magnitude: groups, scores and cut. Both tools run in turns."""
    config = DepGraph(method="depgraph", importance="magnitude_l2", pruning_ratio=0.5, round_to=1)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    ours, theirs = [], []
    for _ in range(RUNS):
        graph.forget_axes()
        start = perf_counter()
        before = sketch(graph)
        targets = find_targets(before, config).cut
        lists = rank_lists(graph, config, targets)
        Cutter(config, before, targets, lists, score_inputs(graph, config, context), None).cut(graph, 1.0)
        ours.append(perf_counter() - start)
        net = _peer_model()
        start = perf_counter()
        pruner = pruner_of(net, torch.randn(1, 3, 224, 224), importance, 0.5, 1)
        pruner.step()
        write_back(pruner)
        theirs.append(perf_counter() - start)
    return {"vitslim": min(ours), "torch-pruning": min(theirs)}


def _size(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def _distill(module: nn.Module, dataset: Dataset, teacher: Tensor) -> None:
    objective: Objective = lambda logits, batch: {LOSS: soft_loss(logits, teacher[batch.positions])}  # noqa: E731
    train(module, dataset, objective, TRAIN, 0, {}, Silent())


def _compare(dense: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return for each image the agreement with the dense model, the KL divergence from it, and the correctness."""
    kl = f.kl_div(logits.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="none").sum(1)
    found = logits.argmax(1)
    return {"agreement": (found == dense.argmax(1)).double(), "kl": kl.double(), "top1": (found == labels).double()}


def _contrasts(share: float, kept: dict[str, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Return paired differences over the images, with 95 % confidence intervals."""
    rows = []
    for better, other in CONTRASTS:
        for phase in ("pruned", "distilled"):
            row: dict[str, Any] = {"share": share, "contrast": f"{better} - {other}", "phase": phase}
            for key in ("agreement", "kl"):
                mean, low, high = difference(kept[f"{better} {phase}"][key], kept[f"{other} {phase}"][key])
                row |= {key: mean, f"{key}_low": low, f"{key}_high": high}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def _context(data: DataModule) -> StageContext:
    return StageContext(data, 0, Silent(), _no_result, Path(gettempdir()))


def _no_result(name: str) -> StageResult:
    raise KeyError(name)
