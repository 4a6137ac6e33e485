"""Latency of operators other than matmuls as a function of token counts, for latency tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitslim.backends.registry import Backend, Measured
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts
from vitslim.progress import Progress
from vitslim.stages.export.onnx_export import export_onnx

FEW = 1 / 8
"""Fraction of the patch tokens that the first block keeps in the model with few tokens."""
SECONDS = 5.0
"""Time for each of the three models on a measured backend."""


class TokenLatency(NamedTuple):
    """Parts of the latency of a model that depend on token squeezing."""

    token_ms: float
    """Operators other than matmuls whose time is proportional to the number of tokens, in the dense model."""
    squeeze_ms: float
    """Operators other than matmuls of one token squeeze."""


def token_latency(
    graph: ModelGraph, dense: ModelSketch, rest_ms: float, dense_ms: float, matmuls_ms: Callable[[ModelSketch], float],
    timed: Callable[[Mapping[str, Path]], Mapping[str, float]], folder: Path,
) -> TokenLatency:  # fmt: skip
    """Solve for both parts from two squeezed models: one with few tokens, one that squeezes a token in many blocks.

    rest_ms, dense_ms: operators other than matmuls, and all, of the dense model. matmuls_ms: estimate for the matmuls
    of a sketch. timed: relative latencies of ONNX files, by name, over that of `dense`. folder: holds dense.onnx, and
    receives the other files. Both parts are zero for a model whose tokens cannot be squeezed, and for one block.
    """
    if dense.squeeze_obstacle or dense.squeezed or len(dense.blocks) < 2:
        return TokenLatency(0.0, 0.0)
    patches = dense.tokens_at(dense.blocks[0]) - dense.prefix_tokens
    sites = dense.blocks[: min(len(dense.blocks), patches) - 1]
    variants = {
        "few": {dense.blocks[0]: max(1, round(FEW * patches))},
        "many": {name: patches - 1 - position for position, name in enumerate(sites)},
    }
    files = {"dense": folder / "dense.onnx"} | {name: folder / f"{name}.onnx" for name in variants}
    for name, keep in variants.items():
        export_onnx(insert_squeeze(graph, keep), files[name])
    ratios = timed(files)
    rows, values = [], []
    for name, keep in variants.items():
        squeezed = dense.with_squeeze(attention_cuts(dense, keep))
        rows.append((_token_share(squeezed, dense) - 1, float(len(keep))))
        values.append((ratios[name] - 1) * dense_ms - (matmuls_ms(squeezed) - matmuls_ms(dense)))
    token_ms, squeeze_ms = np.linalg.solve(np.array(rows), np.array(values))
    return TokenLatency(min(max(0.0, float(token_ms)), rest_ms), max(0.0, float(squeeze_ms)))


def relative_latencies(
    backend: Backend, batch: int, threads: int, progress: Progress
) -> Callable[[Mapping[str, Path]], Mapping[str, float]]:
    """Return the function that times ONNX files on a backend, relative to the file called `dense`."""

    def timed(files: Mapping[str, Path]) -> Mapping[str, float]:
        if isinstance(backend, Measured):
            found = backend.measure(files, "dense", [batch], [threads], SECONDS, progress)
            return {name: 1 / (rows[0].speedup or 1.0) for name, rows in found.items()}
        ms = {name: backend.estimate(path, batch).latency_ms for name, path in files.items()}
        return {name: value / ms["dense"] for name, value in ms.items()}

    return timed


def _token_share(sketch: ModelSketch, dense: ModelSketch) -> float:
    """Return the mean number of tokens that the halves of the blocks process, over that of the dense model.

    The first half of a block, its attention, processes the tokens that the block before it leaves.
    """
    tokens = [sketch.tokens_at(name) for name in sketch.blocks]
    before = [dense.tokens_at(dense.blocks[0]), *tokens[:-1]]
    return float(np.mean([tokens, before])) / dense.tokens_at(dense.blocks[0])
