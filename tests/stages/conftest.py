"""What the tests of all stages need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Data
from vitslim.stages.contract import StageContext, StageResult

DigitsContext = Callable[..., StageContext]


@pytest.fixture
def digits_context(tmp_path: Path) -> DigitsContext:
    """Makes the context of a stage that sees digits and no earlier stage."""

    def make(graph: ModelGraph, calibration: int = 40, seed: int = 0, progress: Progress | None = None) -> StageContext:
        data = load_data(Data(kind="digits", calibration=calibration), graph.source, seed=0)
        return StageContext(data, seed, progress or Silent(), _unknown, tmp_path)

    return make


def _unknown(name: str) -> StageResult:
    raise StageError(f"no stage {name}")
