"""New importances, prune methods and token methods, registered in one place each and run to a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

import vitslim
from vitslim.errors import Problem, RecipeError
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts, sketch
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import stages, validate
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages import prune as prune_recipe
from vitslim.recipe.stages.prune import Prune
from vitslim.recipe.stages.token_squeeze import TokenSqueeze
from vitslim.results import Report
from vitslim.sparsity import unstructured_pattern
from vitslim.stages.contract import Stage, StageContext, StageResult
from vitslim.stages.prune.depgraph import importance
from vitslim.stages.prune.layer_choice import chosen_layers
from vitslim.stages.prune.masks import mask_violations
from vitslim.stages.registry import STAGES, from_config
from vitslim.stages.token_squeeze.counts import block_problems, planned_counts

Run = Callable[..., Report]


@pytest.fixture
def run(one_export: None, tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path) -> Run:
    """Run a recipe of these stages on digits and a two-block ViT; the plan must announce the cost of every stage."""

    def run_stages(*entries: Any) -> Report:
        document = {
            "name": "new-method",
            "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
            "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
            "stages": [*entries, "export"],
            "report": {"backends": ["sim:systolic"], "batches": [1]},
        }
        recipe = validate(document, "test")
        report = run_recipe(recipe, tmp_path / "out").report
        assert [row.cost for row in vitslim.build_plan(recipe).rows] == [stage.cost for stage in report.stages]
        return report

    return run_stages


def square_root(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().abs().sqrt()


def test_a_new_importance_is_a_name_and_a_function(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(prune_recipe.IMPORTANCES, "square_root", "sum of square roots of absolute weights")
    monkeypatch.setitem(importance.IMPORTANCES, "square_root", importance.by_weight(square_root))
    report = run({"prune": {"method": "depgraph", "importance": "square_root", "pruning_ratio": 0.25}})
    assert [stage.method for stage in report.stages] == ["", "depgraph", "onnx"]
    assert report.stages[1].cost.params < report.stages[0].cost.params


class EveryOther(Prune):
    """Mask every other weight of a row."""

    phase: ClassVar[Phase] = Phase.MASK
    method: Literal["every-other"]


@dataclass
class EveryOtherStage:
    """Runs `prune: {method: every-other}`."""

    config: EveryOther

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        return [Problem("", "the model already has a mask")] if sketch.sparsity else []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        return sketch.with_sparsity(self._names(sketch), unstructured_pattern(0.5))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        weights = graph.parameters()
        masks = {name: torch.zeros_like(weights[name], dtype=torch.bool) for name in self._names(sketch(graph))}
        for mask in masks.values():
            mask[..., ::2] = True
        return StageResult(mask_weights(graph, unstructured_pattern(0.5), masks))

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        return mask_violations(after, self._names(sketch(before)))

    def _names(self, sketch: ModelSketch) -> list[str]:
        return [layer.weight for layer in chosen_layers("gemm", sketch)]


def register(monkeypatch: pytest.MonkeyPatch, config: type[StageConfig], stage: Callable[[Any], Stage]) -> None:
    """Add a method for one test: its config to the list of methods, its stage to the registry."""
    monkeypatch.setattr(stages, "METHODS", [*stages.METHODS, config])
    monkeypatch.setitem(STAGES, config, from_config(stage))


def test_a_new_prune_method_is_a_config_and_a_stage(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    register(monkeypatch, EveryOther, EveryOtherStage)
    report = run({"prune": {"method": "every-other"}})
    assert report.stages[1].method == "every-other"
    assert report.stages[1].cost.device_bytes < report.stages[0].cost.device_bytes


def test_the_phase_of_a_new_method_decides_its_order(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    register(monkeypatch, EveryOther, EveryOtherStage)
    with pytest.raises(RecipeError) as error:
        run({"quantize": {"method": "ptq"}}, {"prune": {"method": "every-other"}})
    (problem,) = error.value.problems
    assert problem.where == "stages.1.prune"
    assert "quantize" in f"{problem.message} {problem.hint}"


class Halve(TokenSqueeze):
    """Keep half of the patch tokens after one block."""

    method: Literal["halve"]
    block: int = 0

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        return (self.block,)


@dataclass
class HalveStage:
    """Runs `token-squeeze: {method: halve}`."""

    config: Halve

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        return block_problems(sketch, self.config.squeezed_blocks)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        return sketch.with_squeeze(attention_cuts(sketch, self._kept(sketch)))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        return StageResult(insert_squeeze(graph, self._kept(sketch(graph))))

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        kept = set(self._kept(sketch(before)))
        return [] if kept == set(sketch(after).squeezed) else [Problem("block", "was not squeezed")]

    def _kept(self, sketch: ModelSketch) -> dict[str, int]:
        counts = planned_counts(sketch, dict.fromkeys(self.config.squeezed_blocks, 0.5), "floor")
        return {name: count.after for name, count in counts.items()}


def test_a_new_token_method_is_a_config_and_a_stage(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    register(monkeypatch, Halve, HalveStage)
    report = run({"token-squeeze": {"method": "halve", "block": 1}})
    assert report.stages[1].method == "halve"
    assert report.stages[1].cost.macs < report.stages[0].cost.macs
