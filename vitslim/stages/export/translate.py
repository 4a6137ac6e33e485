"""ONNX forms of single operators, where the exporter has none or one that runtimes run slowly."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import BOOL, FLOAT, opset21

from vitslim.errors import StageError

CODES = np.int8
"""The type that holds quantised values in the file."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of the graph to functions that build their ONNX form (`custom_translation_table` of the exporter)."""
    return {
        torch.ops.vitslim.fake_quant.default: fake_quant,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }


def fake_quant(
    x: FLOAT,
    scale: FLOAT,
    zero_point: int = 0,
    axis: int | None = None,
    qmin: int = 0,
    qmax: int = 0,
    block: int = 0,
) -> Any:
    """QuantizeLinear and DequantizeLinear, with a Clip of the codes between them where their range is below INT8's.

    Folding leaves only the DequantizeLinear of a weight.
    """
    if block != 0:
        raise StageError("blocked quantisation cannot be exported", "use per-channel weights")
    shape = () if axis is None else _shape(scale)
    zeros = _constant(np.full(shape, zero_point, dtype=CODES))
    axes = {} if axis is None else {"axis": axis}
    codes = opset21.QuantizeLinear(x, scale, zeros, **axes)
    limits = np.iinfo(CODES)
    if (qmin, qmax) != (limits.min, limits.max):
        codes = opset21.Clip(codes, _constant(np.array(qmin, dtype=CODES)), _constant(np.array(qmax, dtype=CODES)))
    return opset21.DequantizeLinear(codes, scale, zeros, **axes)


def attention(  # noqa: PLR0913, PLR0917 - the arguments of the operator
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | BOOL | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Two plain products with one Mul and a Softmax between them; the scale goes to the smaller operand, the query.

    The exporter's own form computes the shape of the key at run time and scales query and key by the root of the scale.
    """
    if is_causal or enable_gqa or dropout_p:
        raise StageError("causal, grouped-query and dropout attention cannot be exported")
    factor = 1.0 / sqrt(_shape(query)[-1]) if scale is None else scale
    rank = len(_shape(key))
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = opset21.MatMul(
        opset21.Mul(query, _constant(np.array(factor, dtype=np.float32))), opset21.Transpose(key, perm=order)
    )
    if attn_mask is not None:
        scores = opset21.Add(scores, _additive(attn_mask))
    return opset21.MatMul(opset21.Softmax(scores, axis=-1), value)


def _additive(mask: Any) -> Any:
    """A mask to add to scores: a boolean one becomes 0 where it is true, minus infinity elsewhere."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    return opset21.Where(mask, _constant(np.array(0, np.float32)), _constant(np.array(-np.inf, np.float32)))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _constant(array: np.ndarray[Any, Any]) -> Any:
    return opset21.Constant(value=ir.tensor(array))  # type: ignore[arg-type]
