from __future__ import annotations

import pytest

from vitslim.data import Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.schema import Data


@pytest.fixture
def some_digits(tiny_graph: ModelGraph) -> Dataset:
    """160 digits, 16 of each class, at the input size of the small graph."""
    return load_data(Data(kind="digits"), tiny_graph.source, 0).train.balanced(160)
