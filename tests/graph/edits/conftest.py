"""Fixtures of tests that edit a graph."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm


@pytest.fixture(scope="session")
def kwargs(tiny_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make a three-block ViT of 16 patches."""
    return {**tiny_kwargs, "depth": 3}


@pytest.fixture(scope="session")
def graph(kwargs: dict[str, Any]) -> ModelGraph:
    """A traced three-block ViT with random weights; edits return new graphs and leave it unchanged."""
    return trace_timm("vit_tiny_patch16_224", kwargs)
