"""Every packaged recipe on a narrow ViT of twelve blocks: its stages run as they stand, and its file keeps its word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vitslim
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe import validate
from vitslim.recipe.yaml12 import read_yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NARROW = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_heads": 2, "num_classes": 10}
BRIEF = {"epochs": 1, "batch": 32, "images": 32}


def brief(stage: Any) -> Any:
    """A stage with the shortest training and few calibration batches, the rest as it is.

    Inputs keep 8 bits: in a model of random weights a last digit moves codes of 4 bits, and those the prediction.
    """
    if isinstance(stage, str):
        return stage
    ((kind, keys),) = stage.items()
    changes = {"train": {**keys["train"], **BRIEF}} if "train" in keys else {}
    if "batches" in keys:
        changes |= {"batches": 1, "batch": 16}
    if "input_bits" in keys:
        changes |= {"activation_bits": 8}
    return {kind: {**keys, **changes}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.yaml"))])
def test_the_file_of_a_recipe_keeps_its_promises(name: str, tmp_path: Path) -> None:
    document = read_yaml(RECIPES / f"{name}.yaml")
    own = name == "quickstart"
    document |= {
        "model": document["model"] if own else {"timm": "vit_tiny_patch16_224", "kwargs": NARROW},
        "data": {"kind": "digits", "calibration": 40, "eval_images": 20},
        "stages": [brief(stage) for stage in document["stages"]],
        "report": {"backends": ["sim:systolic"], "batches": [1]},
        "gates": {},
    }
    artifact = vitslim.run(validate(document, name), tmp_path / "out")
    found = inspect(artifact.onnx, layers=True)
    assert found.violations == ()
    assert len(found.contents.layers) >= (9 if own else 25)
    quantized = [stage for stage in artifact.report.stages if stage.kind == "quantize"]
    integers = [layer for layer in found.contents.layers if layer.quantized]
    assert len(integers) == (len(found.contents.layers) if quantized else 0)
