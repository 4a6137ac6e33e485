"""A float model in half precision: weights and everything between input and output."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16


def in_half_precision(model: ir.Model) -> ir.Model:
    """The model with FLOAT16 weights and values; input and output stay FLOAT, so that callers need not change.

    Weights beyond the range of FLOAT16 become its largest, those below its smallest become that.
    """
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each tensor with a number that is too small
        half: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)
    result = ir.from_proto(half)
    result.graph.sort()  # casts of the input are put behind what reads them
    return result
