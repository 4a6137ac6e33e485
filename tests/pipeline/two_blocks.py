"""A packaged recipe, shortened, on a two-block ViT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

import vitslim
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.document.yaml12 import read_yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LAYERS = 10
"""Patch embedding, four in each block, and the head."""
PREDICTOR_LAYERS = 4
"""Layers of the predictor in the one block that squeezes tokens."""
NAMES = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
IN_EVERY_TEST_RUN = {
    "depgraph", "gpusq-int8-quick", "nipq-deploy", "nvit-t", "quickstart", "spatten", "tps-dtps-light",
}  # fmt: skip
"""One recipe for each method; the others are slow tests."""
BRIEF = {"epochs": 1, "batch": 32, "images": 32}


def recipe_parameters(names: Iterable[str]) -> list[ParameterSet]:
    """Return parameters of a test for some recipes, in which all but one recipe of each method are slow."""
    return [pytest.param(name, marks=() if name in IN_EVERY_TEST_RUN else pytest.mark.slow) for name in names]


def brief(stage: Any) -> Any:
    """A stage with the shortest training, few calibration batches and a block that the small model has.

    Activations keep 8 bits: with random weights a difference in the last digit changes 4-bit activations, and with them
    the predicted class.
    """
    if isinstance(stage, str):
        return stage
    ((kind, keys),) = stage.items()
    changes = {"train": {**keys["train"], **BRIEF}} if "train" in keys else {}
    if "batches" in keys:
        changes |= {"batches": 1, "batch": 16}
    if "activation_bits" in keys:
        changes |= {"activation_bits": 8}
    if keys.get("method") == "nipq":
        changes |= {"quantized_epochs": 0, "activation_bits": 8}
    if kind == "token-squeeze":
        changes |= {"blocks": [1]}
    if keys.get("method") == "nvit":
        changes |= {"budget": {"macs": 0.7}, "snapshots": {}, "measure": False, "interval": 1, "per_step": 256,
                    "steps": min(keys.get("steps", 1), 2), "train": {**changes["train"], "images": 320}}  # fmt: skip
    return {kind: {**keys, **changes}}


def _backends(document: dict[str, Any]) -> list[Any]:
    """The accelerators of a recipe, for which it may train; else one simulated target."""
    listed = document.get("report", {}).get("backends", [])
    return [one for one in listed if isinstance(one, dict) and one["sim"] in {"spatten", "fact"}] or ["sim:systolic"]


def check_on_two_blocks(
    name: str, tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], folder: Path
) -> None:
    """Load, plan and run a recipe; its file must keep the claims of its metadata."""
    document = read_yaml(RECIPES / f"{name}.yaml")
    document |= {
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [brief(stage) for stage in document["stages"]],
        "report": {"backends": _backends(document), "batches": [1]},
        "gates": {},
    }
    recipe = validate(document, name)
    assert [row.method for row in vitslim.build_plan(recipe).rows][1:] == [stage.method for stage in recipe.stages]
    artifact = run_recipe(recipe, folder / "out")
    found = inspect(artifact.onnx, layers=True)
    assert found.violations == ()
    predictors = sum(stage.method in {"dtps", "dynamicvit"} for stage in recipe.stages)
    assert len(found.contents.layers) == LAYERS + PREDICTOR_LAYERS * predictors
    squeezed = any(stage.kind == "token-squeeze" for stage in artifact.report.stages)
    assert bool(artifact.report.token_pictures) == squeezed
    quantized = any(stage.kind == "quantize" for stage in artifact.report.stages)
    assert all(layer.quantized == quantized for layer in found.contents.layers)
