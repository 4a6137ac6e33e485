"""Rows of `scripts/bench tps` after training: all methods with the same epochs, at several keep rates.

On Caltech-101 with labels and a teacher, from a DeiT-Tiny that was fine-tuned there; on Imagenette without labels, from
the DeiT-Tiny of ImageNet, for the methods without predictors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from caltech import MODEL, caltech
from kept_model import folder_of, make_model, predictions
from paired_bootstrap import difference
from paths import SHARED, require_shared

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost
from vitslim.graph.trace import trace_timm
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, Dtps, DynamicVit, Etps, Evit, PruneOnly, StageConfig
from vitslim.recipe.stages.training import Loss
from vitslim.recipe.train import Train
from vitslim.stages.registry import make_stage

RATES = (0.7, 0.5, 0.3)
UNLABELED_RATE = 0.5
LR = 1e-4
"""Of the backbone, for all methods."""
PREDICTOR_RATIO = 10
"""Predictors learn at ten times the rate of the backbone (the paper: 100 times, in 30 epochs)."""

SCORED: dict[str, type[Any]] = {"prune-only": PruneOnly, "evit": Evit, "etps": Etps}
PREDICTED: dict[str, type[Any]] = {"dynamicvit": DynamicVit, "dtps": Dtps}
CONTRASTS = (("etps", "evit"), ("etps", "prune-only"), ("dtps", "dynamicvit"), ("dtps", "etps"))
"""Pairs of methods whose predictions are compared image by image at each rate."""


def trained_rows(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with MACs, top-1, agreement and seconds of training, and contrasts with an interval."""
    yield from _labeled(root / "caltech")
    yield from _unlabeled(root / "imagenette")


def _labeled(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    dense, data = caltech()
    for rate in RATES:
        arms = {f"{name} {rate}": [_squeeze(config, name, rate), _train(name, labeled=True)]
                for name, config in (SCORED | PREDICTED).items()}  # fmt: skip
        yield from _rows("caltech", root, dense, data, arms)


def _unlabeled(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    data = load_data(Data(kind="imagefolder", root=str(require_shared("imagenette")), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    arms = {f"{name} {UNLABELED_RATE}": [_squeeze(config, name, UNLABELED_RATE), _train(name, labeled=False)]
            for name, config in SCORED.items()}  # fmt: skip
    yield from _rows("imagenette", root, dense, data, arms)


def _squeeze(config: type[Any], method: str, rate: float) -> StageConfig:
    found: StageConfig = config(method=method, keep_rate=rate)
    return found


def _train(method: str, labeled: bool) -> StageConfig:
    """Three epochs with the dense model as teacher; the ratio loss where there are predictors."""
    predicted = method in PREDICTED
    ratio = PREDICTOR_RATIO if predicted else 1
    rates: dict[str, Any] = {"lr": LR * ratio, "backbone_lr": 1 / ratio}
    loss = Loss(hard=1 if labeled else 0, soft=1, ratio=2 if predicted else 0)
    return Distill(loss=loss, train=Train(epochs=3, batch=32, precision="auto", **rates))


def _rows(
    task: str, root: Path, dense: ModelGraph, data: DataModule, arms: dict[str, list[StageConfig]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    sets = {"val": data.val, **data.extra}
    labels = {name: torch.as_tensor(found.labels) for name, found in sets.items()}
    reference = {name: logits.argmax(1) for name, logits in predictions(root / "dense", dense, sets).items()}
    yield f"{task} dense", _row(dense, dense, reference, reference, labels)
    classes: dict[str, dict[str, torch.Tensor]] = {}
    for name, configs in arms.items():
        folder = folder_of(root, name)
        result = make_model(folder, dense, [make_stage(config) for config in configs], data)
        found = {key: one.argmax(1) for key, one in predictions(folder, result.graph, sets).items()}
        classes[name.split()[0]] = found
        yield f"{task} {name}", _row(result.graph, dense, found, reference, labels) | {
            "seconds": result.metrics["seconds"]} | _contrasts(classes, name.split()[0], labels, reference)  # fmt: skip


def _row(
    graph: ModelGraph,
    dense: ModelGraph,
    found: dict[str, torch.Tensor],
    reference: dict[str, torch.Tensor],
    labels: dict[str, torch.Tensor],
) -> dict[str, Any]:
    row: dict[str, Any] = {"gmacs": cost(graph).macs / 1e9, "macs_ratio": cost(graph).macs / cost(dense).macs}
    for name, classes in found.items():
        right, dense_right = (classes == labels[name]).float(), (reference[name] == labels[name]).float()
        row |= {f"top1_{name}": float(right.mean()), f"top1_change_{name}": difference(right, dense_right),
                f"agreement_{name}": float((classes == reference[name]).float().mean())}  # fmt: skip
    return row


def _contrasts(
    classes: dict[str, dict[str, torch.Tensor]],
    method: str,
    labels: dict[str, torch.Tensor],
    reference: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Return differences of top-1 and agreement between this method and the methods that it is compared with."""
    found: dict[str, Any] = {}
    for first, second in CONTRASTS:
        if first != method or second not in classes:
            continue
        for name, correct in labels.items():
            for key, target in (("top1", correct), ("agreement", reference[name])):
                same = [(classes[one][name] == target).float() for one in (first, second)]
                found[f"{key}_over_{second}_{name}"] = difference(same[0], same[1])
    return found
