"""A new quantization method needs a config, a stage and two lines: here a toy one, from recipe to report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

import vitslim
from vitslim.errors import Problem
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant, weight_scale_name
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.sketch import ModelSketch
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import stages as configs
from vitslim.recipe import validate
from vitslim.recipe.stages.quantize import Quantize
from vitslim.stages import registry
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.checks import graph_problems, model_problems, quantized_sketch
from vitslim.stages.quantize.insert import compare
from vitslim.stages.quantize.layers import quantizable_layers
from vitslim.stages.quantize.notes import quantized_notes, skipped_notes
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.units import FLOAT_BITS


class Fixed(Quantize):
    """One fixed scale per weight tensor."""

    method: Literal["fixed-scale"]
    activations: Literal["float"] = "float"
    symmetric: bool = True
    scale: Annotated[float, Field(gt=0)] = Field(0.01, description="scale of all weights")


class FixedStage:
    """Rounds weights to multiples of one scale."""

    def __init__(self, config: Fixed) -> None:
        self.config = config
        self.scheme = QuantScheme.of(config)

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        return model_problems(self.scheme, sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        return quantized_sketch(self.scheme, sketch)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        weights = quantizable_layers(graph, self.scheme.skip)
        scheme = replace(self.scheme, sites=tuple(FakeQuantSite(w, self.scheme.bits, FLOAT_BITS) for w in weights))
        sizes = {weight: len(tensor_of(graph.module, weight)) for weight in weights}
        scales = {weight_scale_name(w): torch.full((size,), self.config.scale) for w, size in sizes.items()}
        after = insert_fake_quant(graph, scheme.sites, scales)
        notes = quantized_notes(graph, after, scheme)
        return StageResult(after, notes, skipped_notes(graph, weights), compare(graph, after, context))

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        return graph_problems(self.scheme, before, after)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the toy method: the two lines of the existing files that a new method touches."""
    configs.METHODS.append(Fixed)
    monkeypatch.setitem(registry.STAGES, Fixed, registry.from_config(FixedStage))
    yield
    configs.METHODS.remove(Fixed)


@pytest.mark.usefixtures("registered", "one_export")
def test_a_toy_method_runs_from_recipe_to_report(
    tiny_kwargs: dict[str, object], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    recipe = validate(
        {
            "name": "toy",
            "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
            "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
            "stages": [{"quantize": {"method": "fixed-scale", "scale": 0.005, "skip": ["head"]}}, "export"],
            "report": {"backends": [], "batches": [1]},
        }
    )
    stage = run_recipe(recipe, tmp_path / "out").report.stages[1]
    assert (stage.kind, stage.method) == ("quantize", "fixed-scale")
    assert stage.metrics["calibration_sqnr_db"] > 10
    assert {note.result for note in stage.changes} == {"INT8 weights per output channel, float activations"}
    assert [(note.layer, note.reason) for note in stage.skipped] == [("head.weight", "listed in skip")]
    dense, quantized = (
        report.cost.weight_bytes for report in vitslim.load_artifact(tmp_path / "out").report.stages[:2]
    )
    assert quantized < 0.3 * dense
