"""Bits, integers, sparsity patterns and sizes of layers, in every storage format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_layers import PER_CHANNEL, QUANTIZED_INPUT, constants, contents_of, int8_weight, only_layer
from onnx import TensorProto, helper

from vitslim.errors import InputError

WriteGraph = Callable[..., Path]


def int4_tensor(kind: int, values: np.ndarray) -> onnx.TensorProto:
    return helper.make_tensor("w", kind, list(values.shape), values.reshape(-1).tolist())


def test_an_int8_weight_has_per_channel_scales(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=int8_weight())))
    assert (layer.name, layer.type, layer.quantized_by) == ("w", "MatMul", "Q/DQ")
    assert (layer.outputs, layer.reduction, layer.weights) == (6, 8, 48)
    assert (layer.container, layer.weight_bits, layer.activation_bits, layer.granularity) == ("INT8", 8, 8, "channel")
    assert (layer.int_min, layer.int_max, layer.zeros, layer.patterns) == (int(int8_weight().min()), 100, 0, ())
    assert (layer.device_bytes, layer.stored_bytes) == (48, 48)


def test_adjacent_integers_of_one_sign_may_saturate_16_bits(write_graph: WriteGraph) -> None:
    """Only signed integers that are multiplied as integers, and only within an aligned pair along the reduction."""
    weight = np.zeros((8, 6), np.int8)
    weight[[0, 1, 2, 4, 5], 0] = 64, 64, 64, -100, 90
    weight[[3, 4], 1] = 100, 100  # in different pairs
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=weight)))
    assert (layer.pair_sum_max, layer.may_saturate_int16) == (128, False)
    weight[[6, 7], 2] = -64, -65
    assert only_layer(write_graph(PER_CHANNEL, **constants(w=weight))).may_saturate_int16
    at_load = "c = Cast<to = 1>(w)  f = Mul(c, sw)  y = MatMul(x, f)"
    assert not only_layer(write_graph(at_load, **constants(w=weight))).may_saturate_int16
    assert not only_layer(write_graph(PER_CHANNEL, **constants(w=weight.astype(np.uint8)))).may_saturate_int16
    dynamic = "q, a, b = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, b)  y = Cast<to = 1>(i)"
    assert only_layer(write_graph(dynamic, w=weight)).may_saturate_int16


def test_an_int8_weight_with_two_four_takes_five_bits_on_the_device(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=int8_weight(2))))
    assert (layer.pattern, layer.zeros, layer.device_bytes, layer.stored_bytes) == ("2:4", 24, 48 * 5 / 8, 48)


def test_an_int4_weight_with_sparse_pairs_takes_two_and_a_half_bits_on_the_device(write_graph: WriteGraph) -> None:
    values = np.array([1, 2, 0, 0, 0, 0, 3, 4])[:, None] * np.ones((8, 6), int)
    text = "c = Cast<to = 3>(w)  f = DequantizeLinear<axis = 1>(c, sw)  y = MatMul(x, f)"
    layer = only_layer(write_graph(text, **constants(w=int4_tensor(TensorProto.INT4, values))))
    assert layer.patterns == ("2:4", "2:4-pairs")
    assert (layer.pattern, layer.device_bytes, layer.stored_bytes) == ("2:4-pairs", 48 * 2.5 / 8, 24)
    scattered = np.array([1, 0, 2, 0, 0, 3, 0, 4])[:, None] * np.ones((8, 6), int)
    layer = only_layer(write_graph(text, **constants(w=int4_tensor(TensorProto.INT4, scattered))))
    assert (layer.patterns, layer.pattern, layer.device_bytes) == (("2:4",), "2:4", 48 * 3 / 8)
    uneven = np.array([1, 2, 3, 4, 0, 0, 0, 0])[:, None] * np.ones((8, 6), int)
    layer = only_layer(write_graph(text, **constants(w=int4_tensor(TensorProto.INT4, uneven))))
    assert (layer.patterns, layer.pattern) == (("2:4-pairs",), "2:4-pairs")
    assert (layer.container, layer.weight_bits, layer.activation_bits) == ("INT4", 4, 32)


def test_a_half_precision_weight_is_not_quantized(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph("f = Cast<to = 1>(w)  y = MatMul(x, f)", w=int8_weight(2).astype(np.float16)))
    assert (layer.container, layer.weight_bits, layer.quantized, layer.quantized_by) == ("FLOAT16", 16, False, "")
    assert (layer.pattern, layer.int_min, layer.device_bytes, layer.stored_bytes) == ("2:4", None, 48 * 9 / 8, 96)


def test_per_group_zero_points_define_the_zeros(write_graph: WriteGraph) -> None:
    """A weight is zero when it equals the zero point of its group; the last group may be shorter."""
    points = np.array([3, 7], np.uint8)[:, None] * np.ones((2, 6), np.uint8)
    values = np.where(int8_weight(2) == 0, points.repeat(5, axis=0)[:8], 15)
    text = "f = DequantizeLinear<axis = 0, block_size = 5>(w, sb, zb)  y = MatMul(x, f)"
    path = write_graph(text, w=int4_tensor(TensorProto.UINT4, values), sb=np.ones((2, 6), np.float32),
                       zb=int4_tensor(TensorProto.UINT4, points))  # fmt: skip
    layer = only_layer(path)
    assert (layer.container, layer.weight_bits, layer.granularity) == ("UINT4", 4, "group 5")
    assert (layer.zeros, layer.patterns, layer.int_max) == (24, ("2:4",), 15)


def test_integer_group_scales_are_read(write_graph: WriteGraph) -> None:
    """Integers are multiplied by the scale of their group, then, in Q/DQ or at load, by that of their channel."""
    values = np.array([1, 2, 0, 0, 0, 0, 3, 4])[:, None] * np.ones((8, 6), int)
    stored = int4_tensor(TensorProto.INT4, values.reshape(2, 4, 6))
    group_scales = helper.make_tensor("m", TensorProto.UINT4, [2, 1, 6], [15] * 12)
    int8 = "a = Cast<to = 1>(w)  b = Cast<to = 1>(m)  c = Mul(a, b)  d = Reshape(c, s)"
    dequantizing = {
        "e = Cast<to = 3>(d)  f = DequantizeLinear<axis = 1>(e, sw)  y = MatMul(x, f)": "Q/DQ",
        "f = Mul(d, sw)  y = MatMul(x, f)": "at load",
    }
    for text, by in dequantizing.items():
        tensors = constants(w=stored, m=group_scales, s=np.array([8, 6], np.int64))
        contents = contents_of(write_graph(f"{int8}  {text}", **tensors))
        (layer,) = contents.layers
        assert (layer.container, layer.weight_bits, layer.granularity, layer.quantized_by) == ("INT4", 4, "group 4", by)
        assert (layer.outputs, layer.reduction, layer.patterns) == (6, 8, ("2:4", "2:4-pairs"))
        assert (layer.int_max, layer.stored_bytes, contents.scale_bytes) == (4, 24, 6 + 6 * 4)
        assert layer.pair_sum_max == (3 + 4) * 15


def test_dynamic_quantization_is_an_integer_operator(write_graph: WriteGraph) -> None:
    text = "q, a, b = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, b, zw)  y = Cast<to = 1>(i)"
    path = write_graph(
        text, w=(int8_weight(2).astype(int) + 5).clip(-128, 127).astype(np.int8), zw=np.full(6, 5, np.int8)
    )
    layer = only_layer(path)
    assert (layer.type, layer.quantized_by, layer.weight_bits, layer.activation_bits) == (
        "MatMulInteger",
        "integer",
        8,
        8,
    )
    assert (layer.pattern, layer.int_max) == ("2:4", 100)


def test_weights_packed_by_onnx_runtime_are_unpacked(write_graph: WriteGraph) -> None:
    """MatMulNBits stores (outputs, groups, bytes), two integers per byte, lower bits first; the zero point is 8."""
    values = np.full((6, 16), 8, np.uint8)
    values[:, 0], values[:, 7] = 9, 15
    packed = (values[:, 0::2] | values[:, 1::2] << 4).reshape(6, 1, 8)
    text = "y = com.microsoft.MatMulNBits<K = 8, N = 6, bits = 4, block_size = 16>(x, w, sb)"
    layer = only_layer(write_graph(text, w=packed, sb=np.ones(6, np.float32)))
    assert (layer.outputs, layer.reduction, layer.weight_bits, layer.granularity) == (6, 8, 4, "group 16")
    assert (layer.int_min, layer.int_max, layer.zeros, layer.stored_bytes) == (0, 7, 36, 48)


def test_convolution_and_gemm_reduce_along_their_weight(write_graph: WriteGraph) -> None:
    text = "i = Reshape(x, shape)  y = Conv(i, w)"
    layer = only_layer(write_graph(text, output="float[N, 6, 1, 1] y", w=np.ones((6, 2, 2, 2), np.float32),
                                   shape=np.array([-1, 2, 2, 2])))  # fmt: skip
    assert (layer.outputs, layer.reduction, layer.type) == (6, 8, "Conv")
    transposed = int8_weight(2).T.copy()
    text = "f = DequantizeLinear<axis = 0>(w, sw)  y = Gemm<transB = 1>(x, f)"
    layer = only_layer(write_graph(text, **constants(w=transposed)))
    assert (layer.outputs, layer.reduction, layer.pattern) == (6, 8, "2:4")


def test_the_weight_may_be_the_left_operand(write_graph: WriteGraph) -> None:
    text = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 0>(w, sw)  t = Transpose(d)  y = MatMul(f, t)"
    layer = only_layer(write_graph(text, output="float[6, N] y", **constants(w=int8_weight(2).T.copy())))
    assert (layer.outputs, layer.reduction, layer.pattern, layer.activation_bits) == (6, 8, "2:4", 8)


def test_a_clip_narrows_the_activation_bits(write_graph: WriteGraph) -> None:
    """The Clip may be after or before QuantizeLinear: 4 bits either way."""
    tail = "f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"
    after = f"q = QuantizeLinear(x, s, zero)  k = Clip(q, low, high)  d = DequantizeLinear(k, s, zero)  {tail}"
    limits = {"low": np.int8(-8), "high": np.int8(7)}
    assert only_layer(write_graph(after, **constants(w=int8_weight(), **limits))).activation_bits == 4
    before = f"k = Clip(x, low, high)  q = QuantizeLinear(k, s, zero)  d = DequantizeLinear(q, s, zero)  {tail}"
    limits = {"low": np.float32(-0.8), "high": np.float32(0.7)}
    assert only_layer(write_graph(before, **constants(w=int8_weight(), **limits))).activation_bits == 4


def test_matmuls_of_two_quantized_activations_are_listed(write_graph: WriteGraph) -> None:
    text = f"{QUANTIZED_INPUT}  t = Transpose(d)  y = MatMul(d, t)"
    contents = contents_of(write_graph(text, output="float[N, N] y", **constants()))
    assert (contents.layers, len(contents.activation_matmuls)) == ((), 1)


def test_the_contents_of_a_file_are_complete(write_graph: WriteGraph) -> None:
    path = write_graph(
        f"{PER_CHANNEL.replace('y = ', 'h = ')}  y = Add(h, b)", **constants(w=int8_weight(), b=np.ones(6))
    )
    contents = contents_of(path)
    assert (contents.ir_version, contents.opsets["ai.onnx"], contents.inputs) == (10, 21, {"x": "float N x 8"})
    assert contents.operators["DequantizeLinear"] == 2
    assert (contents.scale_bytes, contents.other_bytes) == (4 + 1 + 24, 48)
    assert contents.violations == ()


def test_dynamic_sizes_and_unknown_operators_are_accepted(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "mine": 3]> m (float[N, C, H, W] x) => (float[A] y)
    { h = mine.Strange(x)  y = Relu(h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "any.onnx")
    contents = contents_of(tmp_path / "any.onnx")
    assert contents.operators == {"mine.Strange": 1, "Relu": 1}
    assert contents.inputs == {"x": "float N x C x H x W"}


def test_a_weight_must_match_the_shape_of_its_zero_points(write_graph: WriteGraph) -> None:
    text = PER_CHANNEL.replace("(w, sw)", "(w, sw, zw)")
    path = write_graph(text, **constants(w=int8_weight(), zw=np.ones(5, np.int8)))
    with pytest.raises(InputError, match=r"weight 'w' of MatMul .* cannot be read"):
        contents_of(path)
