"""Half precision for float models."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16


def convert_to_half_precision(model: ir.Model) -> None:
    """In place: weights and activations become FLOAT16; the input and the output of the model stay FLOAT.

    Weights outside the range of FLOAT16 are clipped to its largest and smallest magnitude.
    """
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each tensor with a value below the smallest magnitude
        half: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)
    model.graph = ir.from_proto(half).graph
    model.graph.sort()  # the converter puts casts of the input after the nodes that read them
