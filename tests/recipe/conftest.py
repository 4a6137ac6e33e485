"""A valid recipe document, and the problems of an invalid one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import Problem, RecipeError

BASE = """
name: base
model: {timm: deit_tiny_patch16_224, checkpoint: weights.safetensors, kwargs: {num_classes: 10}}
data: {kind: imagefolder, root: images, calibration: 64, also_evaluate: {more: more, far: /far}}
stages:
  - prune: {method: depgraph, pruning_ratio: 0.25}
  - distill: {teacher: {timm: deit_small_patch16_224, checkpoint: teacher.safetensors}}
  - export
"""


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "name": "test",
        "model": {"timm": "deit_tiny_patch16_224", "checkpoint": "weights.safetensors"},
        "data": {"kind": "digits"},
        "stages": [
            {"prune": {"method": "depgraph", "pruning_ratio": 0.25}},
            {"distill": {"teacher": "dense", "train": {"lr": 1e-4}}},
            {"quantize": {"method": "ptq"}},
            "export",
        ],
    }


@pytest.fixture
def problems() -> Callable[..., dict[str, Problem]]:
    """Call a function that must raise RecipeError and return its problems by path."""

    def collect(function: Callable[..., object], *arguments: Any, **options: Any) -> dict[str, Problem]:
        with pytest.raises(RecipeError) as caught:
            function(*arguments, **options)
        assert caught.value.exit_code == 2
        found = {problem.where: problem for problem in caught.value.problems}
        assert len(found) == len(caught.value.problems)
        return found

    return collect


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file below the test's folder."""

    def to(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to


@pytest.fixture
def base(write: Callable[..., Path]) -> Path:
    """A valid recipe with relative paths, in a file."""
    return write("base.yaml", BASE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder of the test, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitslim"
