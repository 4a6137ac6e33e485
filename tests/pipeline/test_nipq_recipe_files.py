"""Every packaged recipe of NIPQ loads, plans and runs on a two-block ViT, and shows the learned bits in its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_blocks import NAMES, check_on_two_blocks, recipe_parameters

import vitslim
from vitslim.pipeline.run.stored.artifact import Artifact


@pytest.mark.parametrize("name", recipe_parameters(name for name in NAMES if name.startswith("nipq")))
@pytest.mark.usefixtures("one_export")
def test_a_packaged_nipq_recipe_runs_on_two_blocks(
    name: str, tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    check_on_two_blocks(name, tiny_kwargs, run_recipe, tmp_path)
    report = vitslim.load_artifact(tmp_path / "out").report
    assert report.stages[1].bits
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Learned bits: 01-quantize" in page and "blocks.1.mlp.fc2: " in page
