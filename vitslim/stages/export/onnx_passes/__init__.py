"""Passes over the ONNX model, in the order in which they run. What the model computes stays the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from vitslim.recipe.formats.profiles import Profile
from vitslim.stages.export.onnx_passes.gemm_biases import quantize_gemm_biases
from vitslim.stages.export.onnx_passes.half_precision import convert_to_half_precision
from vitslim.stages.export.onnx_passes.integer_matmul import split_gemms, use_integer_matmul
from vitslim.stages.export.onnx_passes.opset import convert_opset
from vitslim.stages.export.onnx_passes.optimize import optimize, sort_nodes
from vitslim.stages.export.onnx_passes.relu import replace_relu_with_max
from vitslim.stages.export.onnx_passes.transposes import fold_transposes
from vitslim.stages.export.onnx_passes.weight_storage import store_weights
from vitslim.stages.export.onnx_passes.zero_points import split_shared_zero_points


def _always(_profile: Profile) -> bool:
    return True


@dataclass(frozen=True)
class OnnxPass:
    """A rewrite of an ONNX model, in place. It does nothing where a model has no operators of its kind."""

    purpose: str
    run: Callable[[ir.Model], None]
    applies: Callable[[Profile], bool] = _always
    """Whether files of this profile get the pass."""

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.run.__name__


ONNX_PASSES = (
    OnnxPass("write Gemm as MatMul and Add where runtimes fuse only these", split_gemms),
    OnnxPass("store transposed constants", fold_transposes),
    OnnxPass("store biases of quantized Gemm nodes as INT32", quantize_gemm_biases),
    OnnxPass("fold constants and fuse operators", optimize),
    OnnxPass("store integer weights in the type and form of the profile", store_weights),
    OnnxPass("give each weight zero points of its own", split_shared_zero_points),
    OnnxPass("keep Relu from moving quantized matmuls to float", replace_relu_with_max),
    OnnxPass("use MatMulInteger for dynamic activations", use_integer_matmul, lambda profile: profile.integer_gemms),
    OnnxPass("order nodes topologically", sort_nodes),
    OnnxPass("write the operators of the chosen opset", convert_opset),
    OnnxPass("convert to half precision", convert_to_half_precision, lambda profile: profile.half_precision),
)
"""Every pass, first to last."""


def run_onnx_passes(model: ir.Model, profile: Profile) -> None:
    """Run each pass that applies, in place."""
    for one in ONNX_PASSES:
        if one.applies(profile):
            one.run(model)
