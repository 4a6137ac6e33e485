from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vitslim.data import Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.schema import Data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models train faster on one thread, and much faster when the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def some_digits(tiny_graph: ModelGraph) -> Dataset:
    """160 digits, 16 of each class, at the input size of the small graph."""
    return load_data(Data(kind="digits"), tiny_graph.source, 0).train.balanced(160)
