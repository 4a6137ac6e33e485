"""ONNX forms of the operators that choose tokens and keep those with the highest scores.

They compute the same as the operators of `graph/ops/squeeze.py` and `graph/ops/selection.py`, in the form that ONNX
Runtime runs fastest: whole tokens are gathered by GatherND, and TopK takes the scores as they are, because in ONNX the
lower index of two equal scores comes first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import FLOAT, INT64, opset21

from vitslim.graph.ops.squeeze import NORM_EPSILON


class _Parts(NamedTuple):
    """Prefix tokens, kept and removed tokens, and the scores of the removed ones."""

    prefix: Any
    kept: Any
    removed: Any
    scores: Any


def keep_tokens(x: FLOAT, score: FLOAT, keep: int) -> Any:
    """Prefix tokens and kept tokens."""
    parts = _split(x, score, keep)
    return _joined(parts.prefix, parts.kept)


def fuse_inattentive(x: FLOAT, score: FLOAT, keep: int) -> Any:
    """Prefix tokens, kept tokens, and the sum of the removed tokens weighted by their scores."""
    parts = _split(x, score, keep)
    fused = opset21.MatMul(opset21.Unsqueeze(parts.scores, _integers(1)), parts.removed)
    return _joined(parts.prefix, parts.kept, fused)


def squeeze_tokens(x: FLOAT, score: FLOAT, keep: int) -> Any:
    """Prefix tokens, and kept tokens to which each removed token was added by cosine similarity."""
    prefix, hosts, guests, _ = _split(x, score, keep)
    similarity = opset21.MatMul(_unit(guests), opset21.Transpose(_unit(hosts), perm=[0, 2, 1]))
    best = opset21.Equal(similarity, opset21.ReduceMax(similarity, _integers(2), keepdims=1))
    weights = opset21.Transpose(opset21.Where(best, opset21.Exp(similarity), _number(0)), perm=[0, 2, 1])
    total = opset21.Add(opset21.ReduceSum(weights, _integers(2), keepdims=1), _number(math.e))
    summed = opset21.Add(opset21.Mul(hosts, _number(math.e)), opset21.MatMul(weights, guests))
    return _joined(prefix, opset21.Div(summed, total))


def highest(values: FLOAT, count: int) -> Any:
    """Positions of the highest values."""
    _, order = opset21.TopK(values, _integers(count), axis=1)
    return order


def take_rows(x: FLOAT, index: INT64) -> Any:
    """Whole rows at these positions."""
    return opset21.GatherND(x, opset21.Unsqueeze(index, _integers(2)), batch_dims=1)


def _split(x: Any, score: Any, keep: int) -> _Parts:
    tokens, patches = int(x.shape[1]), int(score.shape[1])
    prefix = tokens - patches
    scores, order = opset21.TopK(score, _integers(patches), axis=1)
    best, removed = (_cut(order, *ends) for ends in ((0, keep), (keep, patches)))
    kept, _ = opset21.TopK(best, _integers(keep), axis=1, largest=0)
    first = _cut(x, 0, prefix) if prefix else None
    return _Parts(first, _take(x, kept, prefix), _take(x, removed, prefix), _cut(scores, keep, patches))


def _take(x: Any, index: Any, offset: int) -> Any:
    return take_rows(x, opset21.Add(index, _integers(offset)) if offset else index)


def _unit(tokens: Any) -> Any:
    squares = opset21.ReduceSum(opset21.Mul(tokens, tokens), _integers(-1), keepdims=1)
    return opset21.Div(tokens, opset21.Add(opset21.Sqrt(squares), _number(NORM_EPSILON)))


def _joined(*parts: Any) -> Any:
    present = [part for part in parts if part is not None]
    return opset21.Concat(*present, axis=1) if len(present) > 1 else present[0]


def _cut(value: Any, start: int, end: int) -> Any:
    """Return the items `start` to `end` of dimension 1."""
    return opset21.Slice(value, _integers(start), _integers(end), _integers(1))


def _integers(*values: int) -> Any:
    return opset21.Constant(value=ir.tensor(np.array(values, np.int64)))  # type: ignore[arg-type]


def _number(value: float) -> Any:
    return opset21.Constant(value=ir.tensor(np.array(value, np.float32)))  # type: ignore[arg-type]
