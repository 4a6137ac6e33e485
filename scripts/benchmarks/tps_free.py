"""Rows of `scripts/bench tps` without training: every method at several fractions of the MACs of DeiT-Tiny."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from kept_model import folder_of, make_model, predictions
from paired_bootstrap import difference
from paths import SHARED, require_shared

from vitslim.data import load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, cost, sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.schema import Data
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages import DiffRate, Etps, Evit, PruneOnly, Tome
from vitslim.stages.registry import make_stage

MODEL = "deit_tiny_patch16_224"
FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5)
BASELINE = "etps"
"""The method that all others are compared with, image by image, at each fraction."""
CALIBRATION = 256


def scheduled(config: type[Any], method: str) -> Callable[[ModelSketch, float], StageConfig]:
    """Return the config of a method whose counts the solver chooses."""
    return lambda _, fraction: config(method=method, blocks=None, schedule=CostTarget(macs=fraction))


def uniform(config: type[Any], method: str) -> Callable[[ModelSketch, float], StageConfig]:
    """Return the config of a method that keeps one rate in blocks 3, 6 and 9: the largest that meets the fraction."""

    def make(dense: ModelSketch, fraction: float) -> StageConfig:
        def macs(rate: float) -> float:
            found = make_stage(config(method=method, keep_rate=rate)).estimate(dense)
            return found.cost().macs / dense.cost().macs

        rate = max(rate / 1000 for rate in range(50, 1001) if macs(rate / 1000) <= fraction)
        return config(method=method, keep_rate=rate)

    return make


def tome(dense: ModelSketch, fraction: float) -> StageConfig:
    """Return ToMe with the fewest merged tokens that meet the fraction."""
    for remove in range(1, 98):
        config = Tome(method="tome", remove=remove)
        if make_stage(config).estimate(dense).cost().macs <= fraction * dense.cost().macs:
            return config
    raise AssertionError


METHODS: dict[str, Callable[[ModelSketch, float], StageConfig]] = {
    "prune-only": uniform(PruneOnly, "prune-only"),
    "evit": uniform(Evit, "evit"),
    "etps": uniform(Etps, "etps"),
    "tome": tome,
    "diffrate": lambda _, fraction: DiffRate(method="diffrate", macs=fraction),
    "prune-only, solver": scheduled(PruneOnly, "prune-only"),
    "etps, solver": scheduled(Etps, "etps"),
}
"""Row to the config of its method for a fraction of the MACs."""


def free_rows(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with MACs, top-1, agreement, and differences from the baseline at the same fraction."""
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    images = require_shared("imagenette")
    data = load_data(Data(kind="imagefolder", root=str(images), calibration=CALIBRATION,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    sets = {"val": data.val, "samples": data.extra["samples"]}
    labels = {name: torch.as_tensor(found.labels) for name, found in sets.items()}
    reference = {name: logits.argmax(1) for name, logits in predictions(root / "dense", dense, sets).items()}
    yield "dense", _row(dense, dense, {}, reference, reference, labels)
    baseline: dict[str, torch.Tensor] = {}
    for fraction in FRACTIONS:
        for method in sorted(METHODS, key=lambda name: name != BASELINE):
            name = f"{method} {fraction}"
            folder = folder_of(root, name)
            result = make_model(folder, dense, [make_stage(METHODS[method](sketch(dense), fraction))], data)
            logits = predictions(folder, result.graph, sets)
            found = {key: one.argmax(1) for key, one in logits.items()}
            baseline = found if method == BASELINE else baseline
            yield name, _row(result.graph, dense, baseline, found, reference, labels) | {
                "fraction": fraction, "method": method, "seconds": result.metrics["seconds"]}  # fmt: skip


def _row(
    graph: ModelGraph,
    dense: ModelGraph,
    baseline: dict[str, torch.Tensor],
    found: dict[str, torch.Tensor],
    reference: dict[str, torch.Tensor],
    labels: dict[str, torch.Tensor],
) -> dict[str, Any]:
    row: dict[str, Any] = {"gmacs": cost(graph).macs / 1e9, "macs_ratio": cost(graph).macs / cost(dense).macs}
    for name, classes in found.items():
        right, same = (classes == labels[name]).float(), (classes == reference[name]).float()
        dense_right = (reference[name] == labels[name]).float()
        row |= {f"top1_{name}": float(right.mean()), f"agreement_{name}": float(same.mean()),
                f"top1_change_{name}": difference(right, dense_right)}  # fmt: skip
        if baseline:
            base = (baseline[name] == reference[name]).float()
            row[f"agreement_over_etps_{name}"] = difference(same, base)
    row["tokens"] = json.dumps([sketch(graph).axes[axis] for axis in sketch(graph).token_axes.values()])
    return row
