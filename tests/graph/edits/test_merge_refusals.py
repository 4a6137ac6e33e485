"""Counts, blocks and models that cannot be merged, and squeezes that would lose the sizes of merged tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm

METHODS = pytest.mark.parametrize("method", ["tome", "diffrate"])


@pytest.fixture(scope="module")
def kwargs(tiny_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_kwargs, "depth": 3}


@pytest.fixture(scope="module")
def graph(kwargs: dict[str, Any]) -> ModelGraph:
    return trace_timm("vit_tiny_patch16_224", kwargs)


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@METHODS
@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"blocks.3": KeptTokens(16, 9)}, "no block 'blocks.3'"),
        ({"blocks.1": KeptTokens(17, 17)}, "cannot keep 17 of 16"),
        ({"blocks.1": KeptTokens(16, 0)}, "cannot keep 0 of 16"),
        ({"blocks.0": KeptTokens(16, 9), "blocks.1": KeptTokens(10, 10)}, "cannot keep 10 of 9"),
    ],
)
def test_invalid_blocks_and_counts_are_refused(
    graph: ModelGraph, method: str, counts: dict[str, KeptTokens], words: str
) -> None:
    with pytest.raises(StageError, match=words):
        merge_tokens(graph, method, counts)


def test_tome_neither_drops_tokens_nor_merges_more_than_half(graph: ModelGraph) -> None:
    with pytest.raises(StageError, match="cannot keep 15 of 16"):
        merge_tokens(graph, "tome", {"blocks.1": KeptTokens(15, 12)})
    with pytest.raises(StageError, match="cannot merge 9 of 16"):
        merge_tokens(graph, "tome", {"blocks.1": KeptTokens(16, 7)})


def test_a_block_is_squeezed_once_and_sizes_reach_the_last_squeeze(graph: ModelGraph) -> None:
    found = merge_tokens(graph, "tome", {"blocks.0": KeptTokens(16, 11), "blocks.2": KeptTokens(11, 7)})
    with pytest.raises(StageError, match=r"'blocks\.0' is already squeezed"):
        merge_tokens(found, "diffrate", {"blocks.0": KeptTokens(4, 4)})
    with pytest.raises(StageError, match=r"blocks after 'blocks\.1' read the sizes"):
        insert_squeeze(found, {"blocks.1": 9})
    with pytest.raises(StageError, match=r"blocks after 'blocks\.1' read the sizes"):
        merge_tokens(found, "tome", {"blocks.1": KeptTokens(11, 10)})
    last = merge_tokens(graph, "tome", {"blocks.1": KeptTokens(16, 11)}, proportional=False)
    with pytest.raises(StageError, match=r"after 'blocks\.0' already merges"):
        merge_tokens(last, "tome", {"blocks.0": KeptTokens(16, 12)})
    squeezed = insert_squeeze(graph, {"blocks.1": 12})
    with pytest.raises(StageError, match=r"blocks after 'blocks\.1' read the sizes"):
        merge_tokens(squeezed, "tome", {"blocks.0": KeptTokens(16, 14)})
    with pytest.raises(StageError, match=r"blocks after 'blocks\.1' read the sizes"):
        merge_tokens(squeezed, "tome", dict.fromkeys(["blocks.0", "blocks.2"], KeptTokens(16, 14)), proportional=False)
    allowed = merge_tokens(squeezed, "tome", {"blocks.0": KeptTokens(16, 14)}, proportional=False)
    assert allowed.module(images(2)).shape == (2, 10)
    assert insert_squeeze(last, {"blocks.2": 9}).module(images(2)).shape == (2, 10)
    assert insert_squeeze(last, {"blocks.0": 14}).module(images(2)).shape == (2, 10)


@METHODS
@pytest.mark.parametrize(
    ("name", "words"), [("beit_base_patch16_224", "bias for each pair"), ("vit_small_patch16_18x2_224", "MLP does not")]
)
def test_models_that_cannot_be_squeezed_have_a_reason(
    name: str, words: str, method: str, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(StageError, match=words):
        merge_tokens(trace_timm(name, kwargs), method, {"blocks.0": KeptTokens(16, 9)})
