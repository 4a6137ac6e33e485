"""Latency of operators other than matmuls as a function of token counts, for latency tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts

FEW = 1 / 8
"""Fraction of the patch tokens that the first block keeps in the model with few tokens."""


class TokenLatency(NamedTuple):
    """Parts of the latency of a model that depend on token squeezing."""

    token_ms: float
    """Operators other than matmuls whose time is proportional to the number of tokens, in the dense model."""
    squeeze_ms: float
    """Operators other than matmuls of one token squeeze."""


def token_latency(
    graph: ModelGraph, dense: ModelSketch, rest_ms: float, dense_ms: float, matmuls_ms: Callable[[ModelSketch], float],
    shares: Callable[[Mapping[str, ModelGraph]], Mapping[str, float]],
) -> TokenLatency:  # fmt: skip
    """Solve for both parts from two squeezed models: one with few tokens, one that squeezes a token in many blocks.

    rest_ms, dense_ms: operators other than matmuls, and all, of the dense model. matmuls_ms: estimate for the matmuls
    of a sketch. shares: latencies of graphs, by name, over that of the dense model. Both parts are zero for a model
    whose tokens cannot be squeezed, and for one block.
    """
    if dense.squeeze_obstacle or dense.squeezed or len(dense.blocks) < 2:
        return TokenLatency(0.0, 0.0)
    patches = dense.tokens_at(dense.blocks[0]) - dense.prefix_tokens
    sites = dense.blocks[: min(len(dense.blocks), patches) - 1]
    variants = {
        "few": {dense.blocks[0]: max(1, round(FEW * patches))},
        "many": {name: patches - 1 - position for position, name in enumerate(sites)},
    }
    ratios = shares({name: insert_squeeze(graph, keep) for name, keep in variants.items()})
    rows, values = [], []
    for name, keep in variants.items():
        squeezed = dense.with_squeeze(attention_cuts(dense, keep))
        rows.append((_token_share(squeezed, dense) - 1, float(len(keep))))
        values.append((ratios[name] - 1) * dense_ms - (matmuls_ms(squeezed) - matmuls_ms(dense)))
    token_ms, squeeze_ms = np.linalg.solve(np.array(rows), np.array(values))
    return TokenLatency(min(max(0.0, float(token_ms)), rest_ms), max(0.0, float(squeeze_ms)))


def _token_share(sketch: ModelSketch, dense: ModelSketch) -> float:
    """Return the mean number of tokens that the halves of the blocks process, over that of the dense model.

    The first half of a block, its attention, processes the tokens that the block before it leaves.
    """
    tokens = [sketch.tokens_at(name) for name in sketch.blocks]
    before = [dense.tokens_at(dense.blocks[0]), *tokens[:-1]]
    return float(np.mean([tokens, before])) / dense.tokens_at(dense.blocks[0])
