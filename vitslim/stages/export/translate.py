"""ONNX forms of the operators that vitslim adds to a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnxscript import FLOAT, INT8, INT64, opset21

from vitslim.graph.ops.float8 import FAKE_QUANT_FLOAT8
from vitslim.graph.ops.selection import HIGHEST, TAKE_ROWS
from vitslim.stages.export.graph_passes.integer_weights import DEQUANTIZE


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Map operators of the graph to functions that build their ONNX form: the exporter's `custom_translation_table`."""
    return {
        torch.ops.vitslim.fake_quant.default: fake_quant,
        torch.ops.vitslim.dynamic_fake_quant.default: dynamic_fake_quant,
        FAKE_QUANT_FLOAT8: fake_quant_float8,
        DEQUANTIZE: dequantize,
        HIGHEST: highest,
        TAKE_ROWS: take_rows,
    }


def fake_quant(
    x: FLOAT,
    scale: FLOAT,
    zero_point: int = 0,
    axis: int | None = None,  # noqa: ARG001 - activations have one scale
    qmin: int = 0,
    qmax: int = 0,
    group_size: int = 0,  # noqa: ARG001
) -> Any:
    """QuantizeLinear and DequantizeLinear of an activation, after a Clip if its range is narrower than its type."""
    kind = np.uint8 if qmin == 0 else np.int8
    limits = np.iinfo(kind)
    if (qmin, qmax) != (limits.min, limits.max):
        low, high = (_constant(np.array(limit - zero_point, np.float32)) for limit in (qmin, qmax))
        x = opset21.Clip(x, opset21.Mul(scale, low), opset21.Mul(scale, high))
    zero = _constant(np.array(zero_point, dtype=kind))
    return opset21.DequantizeLinear(opset21.QuantizeLinear(x, scale, zero), scale, zero)


def fake_quant_float8(x: FLOAT, scale: FLOAT, axis: int | None = None) -> Any:  # noqa: ARG001
    """QuantizeLinear and DequantizeLinear of an activation to FLOAT8E4M3FN; its zero point gives the type."""
    zero = _constant(np.array(0, dtype=ml_dtypes.float8_e4m3fn))
    return opset21.DequantizeLinear(opset21.QuantizeLinear(x, scale, zero), scale, zero)


def dynamic_fake_quant(x: FLOAT) -> Any:
    """DynamicQuantizeLinear and DequantizeLinear, which runtimes fuse with the matmul that reads them."""
    integers, scale, zero = opset21.DynamicQuantizeLinear(x)
    return opset21.DequantizeLinear(integers, scale, zero)


def dequantize(
    integers: INT8, scale: FLOAT, axis: int = 0, group_size: int = 0, zero_points: INT8 | None = None
) -> Any:
    """DequantizeLinear of a weight.

    Per-channel zero points are written even where they are 0: ONNX Runtime takes missing ones for a per-tensor one.
    """
    if group_size and zero_points is not None:
        return opset21.DequantizeLinear(integers, scale, zero_points, axis=axis, block_size=group_size)
    if group_size:
        return opset21.DequantizeLinear(integers, scale, axis=axis, block_size=group_size)
    is_float8 = integers.dtype == ir.DataType.FLOAT8E4M3FN
    zero_points = _constant(np.zeros(_shape(scale), ml_dtypes.float8_e4m3fn if is_float8 else np.int8))
    return opset21.DequantizeLinear(integers, scale, zero_points, axis=axis)


def highest(values: FLOAT, count: int) -> Any:
    """TopK of the values as they are: in ONNX the lower index of two equal values comes first."""
    _, order = opset21.TopK(values, _constant(np.array([count], np.int64)), axis=1)
    return order


def take_rows(x: FLOAT, index: INT64) -> Any:
    """GatherND, which copies whole rows; GatherElements would read one number at a time."""
    return opset21.GatherND(x, opset21.Unsqueeze(index, _constant(np.array([2], np.int64))), batch_dims=1)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _constant(array: np.ndarray[Any, Any]) -> Any:
    return opset21.Constant(value=ir.tensor(array))  # type: ignore[arg-type]
