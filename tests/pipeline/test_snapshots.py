"""Snapshots of a pruning run: one artifact each, reused when the recipe runs again; kept tables and their device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.backends.registry import parse_backend
from vitslim.errors import UsageError
from vitslim.pipeline.bench import table_cache
from vitslim.pipeline.bench.latency_table import build_table
from vitslim.pipeline.run.stored.artifact import Artifact, load_artifact
from vitslim.pipeline.table_file import table_warnings
from vitslim.progress import Silent
from vitslim.recipe import validate
from vitslim.recipe.schema import Model, Recipe
from vitslim.recipe.stages import Budget, DepGraph

KWARGS = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 2,
          "num_classes": 10}  # fmt: skip
MODEL = Model(timm="vit_tiny_patch16_224", kwargs=KWARGS)


def recipe_with_snapshots() -> Recipe:
    prune: dict[str, Any] = {
        "method": "nvit", "budget": {"macs": 0.5}, "snapshots": {"large": 0.8}, "interval": 2, "per_step": 32,
        "teacher": "none", "loss": {"soft": 0}, "train": {"epochs": 1, "batch": 16, "images": 320},
    }  # fmt: skip
    document = {
        "name": "small",
        "model": {"timm": MODEL.timm, "kwargs": KWARGS},
        "data": {"kind": "digits", "calibration": 16, "eval_images": 20},
        "stages": [{"prune": prune}, "export"],
        "report": {"backends": ["sim:systolic"]},
    }
    return validate(document, "test")


@pytest.mark.slow
@pytest.mark.usefixtures("one_export")
def test_every_snapshot_is_an_artifact(run_recipe: Callable[..., Artifact], tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    artifact = run_recipe(recipe_with_snapshots(), out)
    large = load_artifact(tmp_path / "pruned-large")
    names = [stage.name for stage in large.report.stages]
    assert names == ["00-dense", "01-prune-large", "02-export"]
    dense = artifact.report.stages[0].cost.macs
    shares = [found.report.stages[-1].cost.macs / dense for found in (artifact, large)]
    assert shares[0] <= 0.5 < shares[1] <= 0.8
    again = run_recipe(recipe_with_snapshots(), out)
    assert all(stage.cached for stage in again.report.stages)
    assert all(stage.cached for stage in load_artifact(tmp_path / "pruned-large").report.stages)


def test_a_folder_of_a_snapshot_is_not_overwritten(run_recipe: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "pruned-large").mkdir()
    (tmp_path / "pruned-large" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="pruned-large"):
        run_recipe(recipe_with_snapshots(), tmp_path / "pruned")


@pytest.mark.slow
def test_a_table_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(*arguments: Any, **keys: Any) -> Any:
        built.append(keys["precision"])
        return build_table(*arguments, **keys, models=0)

    monkeypatch.setattr(table_cache, "build_table", build)
    backend = parse_backend("sim:systolic")
    first, second = (
        table_cache.cached_table(MODEL, backend, 2, 1, "float32", tmp_path / "cache", Silent()) for _ in range(2)
    )
    assert first == second
    assert built == ["float32"]
    config = DepGraph(method="depgraph", budget=Budget(latency=0.5, table="t.json"))
    assert table_warnings(first, config, 0, "another processor") == []
    measured = first.model_copy(update={"kind": "measured"})
    (warning,) = table_warnings(measured, config, 0, "another processor")
    assert "the table was measured on" in warning
    assert "this machine is another processor" in warning
    assert table_warnings(measured, config, 0, measured.environment.device) == []


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert table_cache.default_cache() == Path("/somewhere/vitslim/tables")
