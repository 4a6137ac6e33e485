from __future__ import annotations

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph


@pytest.fixture
def teacher(tiny_graph: ModelGraph) -> ModelGraph:
    """A graph with other weights than the student: every matrix is rolled by one row."""
    other = tiny_graph.copy()
    with torch.no_grad():
        for weight in other.module.parameters():
            weight.copy_(weight.roll(1, 0) * 1.5)
    return other
