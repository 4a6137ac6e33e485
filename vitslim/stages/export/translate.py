"""ONNX forms of the operators that vitslim adds to a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import FLOAT, opset21

from vitslim.errors import StageError

CODES = np.int8
"""The type that holds quantised values in the file."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of the graph to functions that build their ONNX form (`custom_translation_table` of the exporter)."""
    return {
        torch.ops.vitslim.fake_quant.default: fake_quant,
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


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _constant(array: np.ndarray[Any, Any]) -> Any:
    return opset21.Constant(value=ir.tensor(array))  # type: ignore[arg-type]
