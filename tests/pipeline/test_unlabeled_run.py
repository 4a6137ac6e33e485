"""A run on images without labels, whose names are not UTF-8, with a preprocessing of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import load_recipe
from vitslim.recipe.schema import Recipe
from vitslim.report import render_markdown

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of noise in a folder whose name is not UTF-8, as theirs."""
    folder = tmp_path_factory.mktemp("plain") / os.fsdecode(b"gr\xfc\xdfe")
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(16):
        pixels = generator.integers(0, 256, size=(40, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / os.fsdecode(b"\xe9%d.png" % number))
    return folder


@pytest.fixture
def document(tiny_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "unlabeled",
        "model": {
            "timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs,
            "preprocessing": {"mean": MEAN, "std": STD, "crop_mode": "squash", "crop_pct": 1.0},
        },
        "data": {"kind": "imagefolder", "val_fraction": 0.25, "calibration": 8},
        "stages": [
            {"distill": {"teacher": "dense", "labels": "teacher", "train": {"epochs": 1, "images": 8, "batch": 8}}},
            "export",
        ],
        "report": {"backends": ["sim:systolic"]},
    }  # fmt: skip


@pytest.mark.usefixtures("one_export")
def test_agreement_is_reported_in_place_of_accuracy(
    run_recipe: Callable[[Recipe, Path], Artifact], document: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(document))
    recipe = load_recipe(tmp_path / "recipe.yaml", partial=True)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": str(root)})})
    artifact = run_recipe(recipe, tmp_path / "out")
    (final,) = artifact.report.final_accuracies
    assert final.n == 4 and list(final.metrics) == ["agreement"]
    assert all("top1" not in one.metrics for stage in artifact.report.stages for one in stage.accuracies)
    fraction = r"val: 4 of 16 images of .*/gr\\xfc\\xdfe, drawn with seed 0 \(data\.val_fraction: 0\.25\)"
    assert artifact.report.data[0] == "train: 16 images without labels"
    assert re.search(fraction, artifact.report.data[1])
    markdown = render_markdown(artifact.report)
    assert "agreement" in markdown and "top-1 |" not in markdown and "of 4 images" in markdown
    written = {key: artifact.manifest["annotations"][key] for key in ("mean", "std", "crop_mode", "crop_pct")}
    assert written == {"mean": MEAN, "std": STD, "crop_mode": "squash", "crop_pct": 1.0}
    assert (artifact.folder / "recipe.lock.yaml").read_text(encoding="utf-8")
