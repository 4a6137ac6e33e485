"""Every packaged recipe of token squeezing by TPS loads, plans and runs on a two-block ViT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_blocks import NAMES, check_on_two_blocks, recipe_parameters

from vitslim.pipeline.run.stored.artifact import Artifact


@pytest.mark.parametrize("name", recipe_parameters(name for name in NAMES if name.startswith("tps")))
@pytest.mark.parametrize("files", ["one_export", pytest.param("all_exports", marks=pytest.mark.slow)])
def test_a_packaged_tps_recipe_runs_on_two_blocks(
    request: pytest.FixtureRequest,
    files: str,
    name: str,
    tiny_kwargs: dict[str, Any],
    run_recipe: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    if files == "one_export":
        request.getfixturevalue(files)
    check_on_two_blocks(name, tiny_kwargs, run_recipe, tmp_path)
