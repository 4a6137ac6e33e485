"""Every packaged recipe of GPUSQ loads, plans and runs on a two-block ViT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_blocks import NAMES, check_on_two_blocks

from vitslim.pipeline.run.artifact import Artifact


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("gpusq")])
def test_a_packaged_gpusq_recipe_runs_on_two_blocks(
    name: str, tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    check_on_two_blocks(name, tiny_kwargs, run_recipe, tmp_path)
