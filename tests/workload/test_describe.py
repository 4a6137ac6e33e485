"""What is told of layers: bits, codes, patterns and sizes in every form that a file may keep weights in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vitslim.errors import InputError
from vitslim.workload import load_onnx
from vitslim.workload.describe import describe, name_nodes
from vitslim.workload.facts import FileFacts, Layer

WriteGraph = Callable[..., Path]

QUANTIZED_INPUT = "q = QuantizeLinear(x, s, zero)  d = DequantizeLinear(q, s, zero)"
PER_CHANNEL = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"


def codes(kept_per_four: int = 4, largest: int = 100) -> np.ndarray:
    """INT8 (8, 6), reduced along the first dimension, with so many values kept in every run of four."""
    generator = np.random.default_rng(0)
    values = generator.integers(1, largest, (8, 6))
    values[0, 0] = largest
    order = np.tile([0, 2, 1, 3], 2)[:, None]  # what is kept of two is not a pair
    return np.where(order < kept_per_four, values, 0).astype(np.int8)


def constants(**more: Any) -> dict[str, Any]:
    return {"s": np.float32(0.1), "zero": np.int8(0), "sw": np.full(6, 0.1, np.float32), **more}


def facts_of(path: Path) -> FileFacts:
    model = load_onnx(path)
    name_nodes(model)
    return describe(model)


def only_layer(path: Path) -> Layer:
    (layer,) = facts_of(path).layers
    return layer


def annotate(path: Path, **fields: Any) -> Path:
    """Note a layer on the model, as the exporter does."""
    model = onnx.load(path)
    entry = {"layer": "w", "weight_bits": 8, "activation_bits": 8, "sparsity": "", "granularity": "channel"} | fields
    model.metadata_props.add(key="vitslim.layers", value=json.dumps([entry]))
    onnx.save(model, path)
    return path


def four_bits(kind: int, values: np.ndarray) -> onnx.TensorProto:
    return helper.make_tensor("w", kind, list(values.shape), values.reshape(-1).tolist())


def test_int8_per_channel(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=codes())))
    assert (layer.name, layer.type, layer.quantized_by) == ("w", "MatMul", "Q/DQ")
    assert (layer.outputs, layer.reduction, layer.weights) == (6, 8, 48)
    assert (layer.container, layer.weight_bits, layer.activation_bits, layer.granularity) == ("INT8", 8, 8, "channel")
    assert (layer.code_min, layer.code_max, layer.zeros, layer.patterns) == (int(codes().min()), 100, 0, ())
    assert (layer.true_bytes, layer.stored_bytes) == (48, 48)


def test_pairs_of_products_that_exceed_16_bits(write_graph: WriteGraph) -> None:
    """Neighbors along the reduction, of one sign, signed, and multiplied as codes."""
    weight = np.zeros((8, 6), np.int8)
    weight[[0, 1, 2, 4, 5], 0] = 64, 64, 64, -100, 90
    weight[[3, 4], 1] = 100, 100  # of different pairs
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=weight)))
    assert (layer.pair_max, layer.exceeds_16_bits) == (128, False)
    weight[[6, 7], 2] = -64, -65
    assert only_layer(write_graph(PER_CHANNEL, **constants(w=weight))).exceeds_16_bits
    at_load = "c = Cast<to = 1>(w)  f = Mul(c, sw)  y = MatMul(x, f)"
    assert not only_layer(write_graph(at_load, **constants(w=weight))).exceeds_16_bits
    assert not only_layer(write_graph(PER_CHANNEL, **constants(w=weight.astype(np.uint8)))).exceeds_16_bits
    dynamic = "q, a, b = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, b)  y = Cast<to = 1>(i)"
    assert only_layer(write_graph(dynamic, w=weight)).exceeds_16_bits


def test_two_four_counts_five_bits_a_weight(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph(PER_CHANNEL, **constants(w=codes(2))))
    assert (layer.pattern, layer.zeros, layer.true_bytes, layer.stored_bytes) == ("2:4", 24, 48 * 5 / 8, 48)


def test_pairs_count_two_and_a_half_bits(write_graph: WriteGraph) -> None:
    values = np.array([1, 2, 0, 0, 0, 0, 3, 4])[:, None] * np.ones((8, 6), int)
    text = "c = Cast<to = 3>(w)  f = DequantizeLinear<axis = 1>(c, sw)  y = MatMul(x, f)"
    layer = only_layer(write_graph(text, **constants(w=four_bits(TensorProto.INT4, values))))
    assert layer.patterns == ("2:4", "2:4-pairs")
    assert (layer.pattern, layer.true_bytes, layer.stored_bytes) == ("2:4-pairs", 48 * 2.5 / 8, 24)
    uneven = np.array([1, 2, 3, 4, 0, 0, 0, 0])[:, None] * np.ones((8, 6), int)
    layer = only_layer(write_graph(text, **constants(w=four_bits(TensorProto.INT4, uneven))))
    assert (layer.patterns, layer.pattern) == (("2:4-pairs",), "2:4-pairs")
    assert (layer.container, layer.weight_bits, layer.activation_bits) == ("INT4", 4, 32)


def test_half_precision(write_graph: WriteGraph) -> None:
    layer = only_layer(write_graph("f = Cast<to = 1>(w)  y = MatMul(x, f)", w=codes(2).astype(np.float16)))
    assert (layer.container, layer.weight_bits, layer.quantized, layer.quantized_by) == ("FLOAT16", 16, False, "")
    assert (layer.pattern, layer.code_min, layer.true_bytes, layer.stored_bytes) == ("2:4", None, 48 * 9 / 8, 96)


def test_blocks_with_zero_points(write_graph: WriteGraph) -> None:
    """Zeros are the codes at the zero point of their own block; the last block may be short."""
    points = np.array([3, 7], np.uint8)[:, None] * np.ones((2, 6), np.uint8)
    values = np.where(codes(2) == 0, points.repeat(5, axis=0)[:8], 15)
    text = "f = DequantizeLinear<axis = 0, block_size = 5>(w, sb, zb)  y = MatMul(x, f)"
    path = write_graph(text, w=four_bits(TensorProto.UINT4, values), sb=np.ones((2, 6), np.float32),
                       zb=four_bits(TensorProto.UINT4, points))  # fmt: skip
    layer = only_layer(path)
    assert (layer.container, layer.weight_bits, layer.granularity) == ("UINT4", 4, "group 5")
    assert (layer.zeros, layer.patterns, layer.code_max) == (24, ("2:4",), 15)


def test_blocks_with_whole_numbers(write_graph: WriteGraph) -> None:
    """Codes are multiplied by the number of their block and, before the model runs or in it, by a scale."""
    values = np.array([1, 2, 0, 0, 0, 0, 3, 4])[:, None] * np.ones((8, 6), int)
    stored = four_bits(TensorProto.INT4, values.reshape(2, 4, 6))
    numbers = helper.make_tensor("m", TensorProto.UINT4, [2, 1, 6], [15] * 12)
    whole = "a = Cast<to = 1>(w)  b = Cast<to = 1>(m)  c = Mul(a, b)  d = Reshape(c, s)"
    behind = {
        "e = Cast<to = 3>(d)  f = DequantizeLinear<axis = 1>(e, sw)  y = MatMul(x, f)": "Q/DQ",
        "f = Mul(d, sw)  y = MatMul(x, f)": "at load",
    }
    for text, by in behind.items():
        tensors = constants(w=stored, m=numbers, s=np.array([8, 6], np.int64))
        facts = facts_of(write_graph(f"{whole}  {text}", **tensors))
        (layer,) = facts.layers
        assert (layer.container, layer.weight_bits, layer.granularity, layer.quantized_by) == ("INT4", 4, "group 4", by)
        assert (layer.outputs, layer.reduction, layer.patterns) == (6, 8, ("2:4", "2:4-pairs"))
        assert (layer.code_max, layer.stored_bytes, facts.scale_bytes) == (4, 24, 6 + 6 * 4)
        assert layer.pair_max == (3 + 4) * 15


def test_dynamic_quantization(write_graph: WriteGraph) -> None:
    text = "q, a, b = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, b, zw)  y = Cast<to = 1>(i)"
    path = write_graph(text, w=(codes(2).astype(int) + 5).clip(-128, 127).astype(np.int8), zw=np.full(6, 5, np.int8))
    layer = only_layer(path)
    assert (layer.type, layer.quantized_by, layer.weight_bits, layer.activation_bits) == (
        "MatMulInteger",
        "integer",
        8,
        8,
    )
    assert (layer.pattern, layer.code_max) == ("2:4", 100)


def test_packed_by_onnx_runtime(write_graph: WriteGraph) -> None:
    """MatMulNBits keeps (outputs, blocks, bytes), two codes a byte, the lower four bits first; 8 stands for zero."""
    values = np.full((6, 16), 8, np.uint8)
    values[:, 0], values[:, 7] = 9, 15
    packed = (values[:, 0::2] | values[:, 1::2] << 4).reshape(6, 1, 8)
    text = "y = com.microsoft.MatMulNBits<K = 8, N = 6, bits = 4, block_size = 16>(x, w, sb)"
    layer = only_layer(write_graph(text, w=packed, sb=np.ones(6, np.float32)))
    assert (layer.outputs, layer.reduction, layer.weight_bits, layer.granularity) == (6, 8, 4, "group 16")
    assert (layer.code_min, layer.code_max, layer.zeros, layer.stored_bytes) == (0, 7, 36, 48)


def test_convolution_and_gemm(write_graph: WriteGraph) -> None:
    text = "i = Reshape(x, shape)  y = Conv(i, w)"
    layer = only_layer(write_graph(text, output="float[N, 6, 1, 1] y", w=np.ones((6, 2, 2, 2), np.float32),
                                   shape=np.array([-1, 2, 2, 2])))  # fmt: skip
    assert (layer.outputs, layer.reduction, layer.type) == (6, 8, "Conv")
    turned = codes(2).T.copy()
    text = "f = DequantizeLinear<axis = 0>(w, sw)  y = Gemm<transB = 1>(x, f)"
    layer = only_layer(write_graph(text, **constants(w=turned)))
    assert (layer.outputs, layer.reduction, layer.pattern) == (6, 8, "2:4")


def test_a_weight_on_the_left(write_graph: WriteGraph) -> None:
    text = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 0>(w, sw)  t = Transpose(d)  y = MatMul(f, t)"
    layer = only_layer(write_graph(text, output="float[6, N] y", **constants(w=codes(2).T.copy())))
    assert (layer.outputs, layer.reduction, layer.pattern, layer.activation_bits) == (6, 8, "2:4", 8)


def test_a_clip_narrows_the_input(write_graph: WriteGraph) -> None:
    """Of the codes, or of the numbers before they are quantized: 4 bits either way."""
    tail = "f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"
    after = f"q = QuantizeLinear(x, s, zero)  k = Clip(q, low, high)  d = DequantizeLinear(k, s, zero)  {tail}"
    limits = {"low": np.int8(-8), "high": np.int8(7)}
    assert only_layer(write_graph(after, **constants(w=codes(), **limits))).activation_bits == 4
    before = f"k = Clip(x, low, high)  q = QuantizeLinear(k, s, zero)  d = DequantizeLinear(q, s, zero)  {tail}"
    limits = {"low": np.float32(-0.8), "high": np.float32(0.7)}
    assert only_layer(write_graph(before, **constants(w=codes(), **limits))).activation_bits == 4


def test_products_of_two_activations(write_graph: WriteGraph) -> None:
    text = f"{QUANTIZED_INPUT}  t = Transpose(d)  y = MatMul(d, t)"
    facts = facts_of(write_graph(text, output="float[N, N] y", **constants()))
    assert (facts.layers, len(facts.activation_products)) == ((), 1)


def test_the_file_as_a_whole(write_graph: WriteGraph) -> None:
    path = write_graph(f"{PER_CHANNEL.replace('y = ', 'h = ')}  y = Add(h, b)", **constants(w=codes(), b=np.ones(6)))
    facts = facts_of(path)
    assert (facts.ir_version, facts.opsets["ai.onnx"], facts.inputs) == (10, 21, {"x": "float N x 8"})
    assert facts.operators["DequantizeLinear"] == 2
    assert (facts.scale_bytes, facts.other_bytes) == (4 + 1 + 24, 48)
    assert facts.broken == ()


def test_dynamic_sizes_and_unknown_operators_are_no_obstacle(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "mine": 3]> m (float[N, C, H, W] x) => (float[A] y)
    { h = mine.Strange(x)  y = Relu(h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "any.onnx")
    facts = facts_of(tmp_path / "any.onnx")
    assert facts.operators == {"mine.Strange": 1, "Relu": 1}
    assert facts.inputs == {"x": "float N x C x H x W"}


@pytest.mark.parametrize(
    ("kept", "fields", "promise", "found"),
    [
        (3, {"sparsity": "2:4"}, "2:4 weights", "12 of 12 runs"),
        (2, {"sparsity": "2:4-pairs"}, "2:4-pairs weights", "6 of 6 runs"),
        (3, {"sparsity": "unstructured:0.5"}, "unstructured:0.5 weights", "25.0% of its weights are zero"),
        (3, {"sparsity": "7:3"}, "'7:3' weights", "does not know"),
        (4, {"weight_bits": 7}, "weights of 7 bits, integers from -63 to 63", "to 100"),
        (4, {"activation_bits": 4}, "activations of 4 bits", "8 bits"),
        (4, {"layer": "blocks.7.w"}, "an annotated layer is in the graph", "no layer of this name"),
    ],
)
def test_broken_promises(write_graph: WriteGraph, kept: int, fields: dict[str, Any], promise: str, found: str) -> None:
    path = annotate(write_graph(PER_CHANNEL, **constants(w=codes(kept))), **fields)
    (broken,) = facts_of(path).broken
    assert broken.layer == fields.get("layer", "w")
    assert broken.promise == promise
    assert found in broken.found


def test_kept_promises(write_graph: WriteGraph) -> None:
    for kept, fields in ((2, {"sparsity": "2:4"}), (2, {"sparsity": "unstructured:0.5"}), (4, {"weight_bits": 8})):
        path = annotate(write_graph(PER_CHANNEL, **constants(w=codes(kept))), **fields)
        assert facts_of(path).broken == ()
    path = annotate(write_graph(PER_CHANNEL, **constants(w=codes(largest=31))), weight_bits=6)
    assert facts_of(path).broken == ()
    layer = only_layer(path)
    assert (layer.weight_bits, layer.true_bytes, layer.stored_bytes) == (6, 36, 48)


def test_a_float_weight_that_is_noted_as_int8(write_graph: WriteGraph) -> None:
    path = annotate(write_graph("y = MatMul(x, w)", w=np.ones((8, 6), np.float32)))
    assert {(b.promise, b.found) for b in facts_of(path).broken} == {
        ("weights of 8 bits", "stored as FLOAT"), ("activations of 8 bits", "32 bits"),
    }  # fmt: skip


def test_a_shifted_zero_point_is_wider_than_its_bits(write_graph: WriteGraph) -> None:
    text = PER_CHANNEL.replace("(w, sw)", "(w, sw, zw)")
    path = write_graph(text, **constants(w=codes(largest=127), zw=np.full(6, -3, np.int8)))
    (broken,) = facts_of(annotate(path)).broken
    assert broken.found.endswith("to 130")


@pytest.mark.parametrize("wrong", [0.0, -0.1, np.nan, np.inf])
def test_scales(write_graph: WriteGraph, wrong: float) -> None:
    scales = np.full(6, 0.1, np.float32)
    scales[2] = wrong
    (broken,) = facts_of(write_graph(PER_CHANNEL, **constants(w=codes(), sw=scales))).broken
    assert (broken.layer, broken.promise) == ("w", "scales are positive and finite")
    assert "1 of 6 in 'sw'" in broken.found
    found = facts_of(write_graph(PER_CHANNEL, **constants(w=codes(), s=np.float32(wrong)))).broken
    assert {b.layer for b in found} == {"w"}


def test_notes_that_nobody_can_read(write_graph: WriteGraph) -> None:
    path = write_graph(PER_CHANNEL, **constants(w=codes()))
    for text in ('{"a": 1}', '[1, {"layer": 3}]', "[" * 100_000, '[{"layer": "w", "weight_bits": "many"}]'):
        model = onnx.load(path)
        model.metadata_props.add(key="vitslim.layers", value=text)
        onnx.save(model, path.with_name("noted.onnx"))
        broken = facts_of(path.with_name("noted.onnx")).broken
        assert broken
        assert all(b.promise.startswith("vitslim.layers") for b in broken)


def test_notes_on_nodes(write_graph: WriteGraph) -> None:
    path = annotate(write_graph(PER_CHANNEL, **constants(w=codes())))
    model = onnx.load(path)
    product, first = model.graph.node[-1], model.graph.node[0]
    for key, value in {"layer": "w", "weight_bits": "8", "activation_bits": "4"}.items():
        product.metadata_props.add(key=f"vitslim.{key}", value=value)
    first.metadata_props.add(key="vitslim.layer", value="ghost")
    onnx.save(model, path)
    assert {(b.layer, b.promise) for b in facts_of(path).broken} == {
        ("w", "node and model say the same of a layer"),
        ("ghost", "an annotated node is a layer"),
        ("w", "activations of 4 bits"),
    }


def test_a_weight_that_does_not_fit_its_quantizer(write_graph: WriteGraph) -> None:
    text = PER_CHANNEL.replace("(w, sw)", "(w, sw, zw)")
    path = write_graph(text, **constants(w=codes(), zw=np.ones(5, np.int8)))
    with pytest.raises(InputError, match=r"weight 'w' of MatMul .* cannot be read"):
        facts_of(path)
