"""Stages run in every legal order on a two-block ViT and digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitslim
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.schema import Recipe

ORDERS = {
    "squeeze, prune, 2:4": [
        {"token-squeeze": {"method": "etps", "blocks": [0, 1], "keep_rate": 0.6}},
        {"prune": {"method": "depgraph", "pruning_ratio": 0.25, "importance": "taylor", "mode": "bottleneck"}},
        {"prune": {"method": "two-four"}},
        "export",
    ],
    "quantize, then squeeze": [
        {"quantize": {"method": "ptq", "calibrate": "minmax"}},
        {"token-squeeze": {"method": "etps", "blocks": [1], "keep_rate": 0.5}},
        "export",
    ],
    "2:4, train, export in float": [
        {"prune": {"method": "two-four", "layers": ["fc1", "fc2"]}},
        {"distill": {"name": "repair", "teacher": "previous", "train": {"epochs": 1, "images": 32}}},
        {"distill": {"teacher": "repair", "train": {"epochs": 1, "images": 32}}},
        "export",
    ],
}


SLOW = ("2:4, train, export in float", "squeeze, prune, 2:4")


@pytest.mark.usefixtures("one_export")
@pytest.mark.parametrize(
    "stages",
    [pytest.param(stages, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, stages in ORDERS.items()],
)
def test_every_legal_order_runs_and_matches_its_plan(
    tiny_kwargs: dict[str, Any], run_recipe: Callable[[Recipe, Path], Artifact], stages: list[Any], tmp_path: Path
) -> None:
    """Every stage keeps its contract, and the costs of the plan are those of the report."""
    document = {
        "name": "ordered",
        "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": stages,
        "report": {"backends": ["sim:systolic"], "batches": [1]},
    }
    ordered = validate(document, "test")
    report = run_recipe(ordered, tmp_path / "out").report
    assert [row.cost for row in vitslim.build_plan(ordered).rows] == [stage.cost for stage in report.stages]
    assert report.parity["parity_agreement"] >= 0.95
