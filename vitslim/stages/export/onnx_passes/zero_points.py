"""Zero points of weights."""

from __future__ import annotations

import onnx_ir as ir

from vitslim.stages.export.onnx_passes.rewrite import add_constant, find_constant


def split_shared_zero_points(model: ir.Model) -> None:
    """In place: give each per-channel weight zero points of its own where several weights share one constant.

    OpenVINO computes a matmul in float if it shares its zero points with a convolution.
    """
    for node in [one for one in model.graph if one.op_type == "DequantizeLinear" and len(one.inputs) > 2]:
        integers, zero_points = node.inputs[0], node.inputs[2]
        if integers is not None and integers.is_initializer() and zero_points is not None:
            array = find_constant(zero_points) if len(zero_points.uses()) > 1 else None
            if array is not None and array.ndim:
                node.replace_input_with(2, add_constant(model, f"{integers.name}_zero_points", array))
