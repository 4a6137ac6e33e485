"""Every packaged recipe of NViT loads, plans and runs on a two-block ViT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_blocks import NAMES, RECIPES, check_on_two_blocks, recipe_parameters

from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate
from vitslim.recipe.document.yaml12 import read_yaml
from vitslim.recipe.stages import Nvit

PUBLISHED = {"nvit-b": 0.54, "nvit-h": 0.5, "nvit-s": 0.39, "nvit-t": 0.19}


@pytest.mark.usefixtures("one_export")
@pytest.mark.parametrize("name", recipe_parameters(name for name in NAMES if name.startswith("nvit")))
def test_a_packaged_nvit_recipe_runs_on_two_blocks(
    name: str, tiny_kwargs: dict[str, Any], run_recipe: Callable[..., Artifact], tmp_path: Path
) -> None:
    check_on_two_blocks(name, tiny_kwargs, run_recipe, tmp_path)


@pytest.mark.parametrize(("name", "share"), PUBLISHED.items())
def test_the_recipes_hold_the_published_settings(name: str, share: float) -> None:
    prune = validate(read_yaml(RECIPES / f"{name}.yaml"), name, partial=True).stages[0]
    assert isinstance(prune, Nvit)
    assert (prune.budget.latency, prune.interval, prune.per_step, prune.eta) == (share, 100, 32, 5e-4)
    # 1e5 times the mean over 1000 classes, in units of a soft loss with the factor T^2
    assert prune.loss.soft == pytest.approx(1e5 / 1000 / prune.temperature**2, rel=1e-3)
    assert all(fraction in PUBLISHED.values() for fraction in prune.snapshots.values())
