"""The placement of quantizers in a quantize stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.memory import images_at_once, outputs_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import Floor, Quantize
from vitslim.results import LayerNote
from vitslim.stages.contract import Deployment, StageContext
from vitslim.stages.quantize.insert import Quantized
from vitslim.stages.quantize.observe import FORWARD_BATCH
from vitslim.stages.quantize.placement.choose import Placement, PlacementSearch
from vitslim.stages.quantize.placement.forms import candidate_forms
from vitslim.training.evaluate import predict
from vitslim.training.tasks import task_for

JUDGED_IMAGES = 256
"""Largest number of calibration images that candidates are judged on."""


def place(
    quantized: Quantized, float_graph: ModelGraph, config: Quantize, context: StageContext
) -> tuple[Quantized, tuple[LayerNote, ...]]:
    """Return the quantized model as `placement` places its quantizers, and a note on each measured candidate.

    float_graph: the graph that the stage received. Raises StageError if candidates cannot be measured.
    """
    if config.placement == "fixed":
        return quantized, ()
    if context.deployment is None:
        hint = "add `onnxruntime:cpu` to `report.backends`, or write `placement: fixed`"
        raise StageError("`placement: auto` needs a measured backend that runs ONNX files", hint)
    best, written = choose_placement(quantized, float_graph, config.floor, context.deployment, context)
    return replace(quantized, graph=best.graph, scheme=best.scheme), placement_notes(best, written, config.floor)


def choose_placement(
    quantized: Quantized, float_graph: ModelGraph, floor: Floor, deployment: Deployment, context: StageContext
) -> tuple[Placement, tuple[Placement, ...]]:
    """Return the fastest placement that keeps the floor, and all that were written; see `PlacementSearch`."""
    images = context.data.calibration.balanced(outputs_at_once(float_graph.source, JUDGED_IMAGES))
    batch = images_at_once(float_graph, FORWARD_BATCH)
    reference, _ = predict(float_graph.module, images, batch, context.progress, "placement: float model")
    with TemporaryDirectory(dir=context.workdir) as folder:
        task = task_for(float_graph.source)
        search = PlacementSearch(reference, _tensor(images), floor, deployment, context, Path(folder), task)
        return search.choose(candidate_forms(quantized.graph, quantized.scheme))


def placement_notes(best: Placement, written: Sequence[Placement], floor: Floor) -> tuple[LayerNote, ...]:
    """Return a note on each candidate that was written, measured or not."""
    verdict = "chosen"
    if not best.holds(floor):
        verdict = f"chosen: no candidate reaches {floor.sqnr_db:g} dB and {floor.agreement:.1%}"
    return tuple(
        LayerNote(
            layer=f"placement: {one.name}", result=_result(one), reason=verdict if one is best else _reason(one, floor)
        )
        for one in written
    )


def _result(one: Placement) -> str:
    """Return, for example, `4.21 ms, 24.1 dB, 98.8% agreement`."""
    latency = [] if math.isnan(one.latency_ms) else [f"{one.latency_ms:.3g} ms"]
    fidelity = [f"{one.sqnr_db:.1f} dB", f"{one.agreement:.1%} agreement"] if one.is_judged else []
    return ", ".join(latency + fidelity)


def _reason(one: Placement, floor: Floor) -> str:
    if not one.is_judged:
        return "not judged: slower than the chosen candidate"
    return "" if one.holds(floor) else "below the floor"


def _tensor(images: Dataset) -> Tensor:
    """All images, decoded once: float32 (n, C, H, W)."""
    return torch.cat([batch for batch, _ in images.batches(FORWARD_BATCH)])
